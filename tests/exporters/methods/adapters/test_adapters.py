"""Tests of engines whose requests choose adapters, against PEFT's merged models, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from transformers import PreTrainedModel

from enginewright.exporters.build import build
from enginewright.exporters.methods.adapters import Config
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import LLM, Sampling, load
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.adapters import make_base_model, merge_with_peft, train_with_peft

pytestmark = [pytest.mark.native, pytest.mark.slow]

PROMPT = [int(token) for token in torch.arange(3, 43) * 5 % 250]
NEW = 10


def answer(model: PreTrainedModel) -> tuple[int, ...]:
    """The model's greedy tokens after the prompt."""
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(NEW):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(PROMPT) :])


def make_engine(family: str, root: Path, *apply: str, **recipe: Any) -> Path:
    """The engine of a random model of the family."""
    make_base_model(family).save_pretrained(root / "base")
    chosen = Recipe(apply=tuple(map(parse_method, apply)), max_batch=4, **recipe)
    build(str(root / "base"), root / "engine", chosen, "onnxruntime")
    return root / "engine"


def generate(llm: LLM, names: Sequence[str | None]) -> list[tuple[int, ...]]:
    """The greedy tokens of one request for each adapter, all in one batch."""
    samplings = [Sampling(max_tokens=NEW, temperature=0, ignore_eos=True, adapter=name) for name in names]
    return [tuple(done.token_ids) for done in llm.generate([PROMPT] * len(names), samplings)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "phi3", "mixtral"])
def test_every_row_answers_as_its_merged_model(family: str, tmp_path: Path) -> None:
    """Adapters of different ranks and layers, and none, in one batch: each answers as PEFT's merge of it."""
    engine = make_engine(family, tmp_path, "adapters:capacity=3,rank=8")
    first = ["qkv_proj", "down_proj"] if family == "phi3" else ["q_proj", "v_proj", "o_proj"]
    settings: dict[str, dict[str, Any]] = {
        "small": {"target_modules": first, "r": 3},
        "all": {"target_modules": "all-linear", "r": 8, "use_rslora": True},
    }
    if family == "mixtral":  # experts are no linear layers
        settings["all"]["target_modules"] = ["k_proj", "o_proj"]
    wanted = {None: answer(make_base_model(family))}
    with load(engine) as llm:
        for seed, (name, options) in enumerate(settings.items()):
            folder = train_with_peft(make_base_model(family), tmp_path / name, seed=seed, **options)
            assert llm.load_adapter(folder) == name
            wanted[name] = answer(merge_with_peft(make_base_model(family), folder))
        names = ["all", None, "small", "all"]
        assert generate(llm, names) == [wanted[name] for name in names]
    assert len(set(wanted.values())) == 3


def test_packed_products_have_one_node(tmp_path: Path) -> None:
    engine = make_engine("llama", tmp_path, "adapters:capacity=1,rank=2")
    graph = onnx.load(next(engine.rglob("*.onnx")), load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "AddLora"]
    assert len(nodes) == 2 * 4  # query, key and value; output; gate and up; down
    assert sorted(len(node.input) for node in nodes) == sorted([4 + 6, 4 + 2, 4 + 4, 4 + 2] * 2)


def test_some_layers_alone(tmp_path: Path) -> None:
    """Only the chosen layers have tensors and nodes, and they answer as the merged model."""
    engine = make_engine("llama", tmp_path, "adapters:capacity=1,rank=4,targets=v_proj+down_proj")
    folder = train_with_peft(make_base_model("llama"), tmp_path / "x", target_modules=["v_proj", "down_proj"])
    with load(engine) as llm:
        tensors = llm.manifest.conditions["adapter"].tensors
        assert sorted(tensors) == ["down_proj_a", "down_proj_b", "v_proj_a", "v_proj_b"]
        llm.load_adapter(folder, "x")
        (got,) = generate(llm, ["x"])
    assert got == answer(merge_with_peft(make_base_model("llama"), folder))


def test_a_cache_of_few_bits_beside_it(tmp_path: Path) -> None:
    engine = make_engine("qwen3", tmp_path, "adapters:rank=4", "kvarn:k_bits=8,v_bits=8")
    folder = train_with_peft(make_base_model("qwen3"), tmp_path / "x", target_modules="all-linear")
    with load(engine) as llm:
        llm.load_adapter(folder, "x")
        got = generate(llm, ["x", None])
    assert got == [answer(merge_with_peft(make_base_model("qwen3"), folder)), answer(make_base_model("qwen3"))]


def test_values_that_another_method_has_rotated_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="name adapters before the method that moves it"):
        make_engine("qwen3", tmp_path, "kvarn", "adapters")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity: got 0, expected 1 to 4096"),
        ({"rank": 5000}, "rank: got 5000, expected 1 to 4096"),
    ],
)
def test_settings_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Config(**options)


def test_an_unknown_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="targets: got 'x_proj', expected all or layers among down_proj, gate_proj"):
        make_engine("llama", tmp_path, "adapters:targets=q_proj+x_proj")
