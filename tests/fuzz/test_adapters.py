"""Changed LoRA adapters: an export merges them and a serving engine loads them, or each names what is wrong."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginewright.exporters.build import build
from enginewright.exporters.methods.lora import Config
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import Sampling, load
from enginewright.runtime.artifact.adapters.settings import read_settings
from enginewright.runtime.artifact.safetensors_file import read_floats
from tests.support.exporters.adapted import make_base, merge
from tests.support.exporters.adapters import make_base_model, train_with_peft
from tests.support.fuzzing.attempts import attempt
from tests.support.fuzzing.mutations import change_bytes, change_text, changed
from tests.support.fuzzing.read_corpus import read_corpus
from tests.support.fuzzing.rounds import draws, rounds
from tests.support.paths import ROOT

ADAPTER = ROOT / "examples/tiny-reasoner-lora"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VALID = {**json.loads((ADAPTER / CONFIG).read_text()), "rank_pattern": {"q_proj": 4}, "modules_to_save": ["lm_head"]}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear layers": ("llama", {"target_modules": "all-linear", "rank_pattern": {"q_proj": 3}, "use_rslora": True}),
    "dora": ("llama", {"target_modules": ["lm_head", "embed_tokens", "q_proj"], "use_dora": True}),
    "biases and modules": ("qwen2", {"target_modules": ["q_proj"], "bias": "all", "modules_to_save": ["lm_head"]}),
    "token rows": ("qwen2", {"target_modules": ["v_proj"], "trainable_token_indices": [1, 5]}),
    "pissa": ("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": "pissa"}),
    "experts": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}),
}


def read(folder: Path) -> None:
    """Read the settings, and what they say of a layer."""
    settings = read_settings(folder)
    settings.rank_of("model.layers.0.self_attn.q_proj")
    settings.scaling("model.layers.0.self_attn.q_proj")


def change_tensors(rng: random.Random, content: bytes) -> bytes:
    """Return a safetensors file with a change of its header, or of the numbers, some of which become NaN or infinite."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], bytearray(content[8 + size :])
    if rng.random() < 0.2:
        start = 4 * rng.randrange(len(data) // 4)
        data[start : start + 4] = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f", bytes(4)))
    else:
        header = change_text(rng, json.loads(header))
    return len(header).to_bytes(8, "little") + header + bytes(data)


def change_adapter(rng: random.Random, valid: Path, folder: Path) -> str:
    """Write a changed copy of the adapter `valid`, and return what is changed."""
    settings, tensors = (valid / CONFIG).read_bytes(), (valid / WEIGHTS).read_bytes()
    both = rng.choice(("settings", "tensors", "both"))
    settings = settings if both == "tensors" else change_text(rng, json.loads(settings))
    tensors = tensors if both == "settings" else change_tensors(rng, tensors)
    (folder / CONFIG).write_bytes(settings)
    (folder / WEIGHTS).write_bytes(tensors)
    return f"{both}: {settings.decode(errors='replace')} {tensors[8:2000].decode(errors='replace')}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_changed_adapters_in_a_merge(kind: str, tmp_path: Path) -> None:
    """Each weight of the export is read, or the merge is refused; the base's stay as they were."""
    family, settings = KINDS[kind]
    base = make_base(family, tmp_path / "model")
    valid = train_with_peft(make_base_model(family), tmp_path / "valid", **settings)
    before = {name: weight.load().copy() for name, weight in base.weights.items()}
    folder, rng = tmp_path / "changed", draws(3)
    folder.mkdir()

    def read_merged() -> None:
        for weight in merge(base, Config(path=str(folder), weight=rng.choice((1.0, -2.0, 1e30)))).values():
            weight.load()

    for _ in range(rounds(20)):
        attempt(change_adapter(rng, valid, folder), read_merged)
    assert all(np.array_equal(weight.load(), before[name]) for name, weight in base.weights.items())


@pytest.mark.native
@pytest.mark.filterwarnings("ignore")
def test_changed_adapters_in_a_serving_engine(tmp_path: Path) -> None:
    """What is loaded answers, or its logits are refused; without an adapter, requests are answered as before."""
    model = make_base_model("llama")
    model.save_pretrained(tmp_path / "base")
    recipe = Recipe(apply=(parse_method("adapters:capacity=2,rank=4"),), max_batch=2)
    build(str(tmp_path / "base"), tmp_path / "engine", recipe, "onnxruntime")
    valid = train_with_peft(model, tmp_path / "valid", target_modules=["q_proj", "v_proj", "down_proj"])
    folder, rng = tmp_path / "changed", draws(4)
    folder.mkdir()
    with load(tmp_path / "engine") as llm:
        expected = llm.generate([5, 6, 7], Sampling(max_tokens=3))[0].token_ids

        def serve() -> None:
            llm.load_adapter(folder, "changed")
            llm.generate([5, 6, 7], Sampling(max_tokens=2, adapter="changed", adapter_scale=rng.choice((1.0, -2.0))))

        for _ in range(rounds(20)):
            attempt(change_adapter(rng, valid, folder), serve)
        assert llm.generate([5, 6, 7], Sampling(max_tokens=3))[0].token_ids == expected
        assert llm.load_adapter(valid, "changed") == "changed"


def test_changed_settings(tmp_path: Path) -> None:
    rng = draws(0)
    for _ in range(rounds(400)):
        text = change_text(rng, VALID)
        (tmp_path / CONFIG).write_bytes(text)
        attempt(text, lambda: read(tmp_path))


def test_changed_factors(tmp_path: Path) -> None:
    content, rng = (ADAPTER / WEIGHTS).read_bytes(), draws(1)
    for _ in range(rounds(60)):
        changed_content = change_bytes(rng, content[:4000]) + content[4000:]
        (tmp_path / WEIGHTS).write_bytes(changed_content)
        attempt(changed_content[:200], lambda: read_floats(tmp_path / WEIGHTS, 1 << 22))


@pytest.mark.parametrize("case", read_corpus("adapters"), ids=str)
def test_what_once_failed(tmp_path: Path, case: dict[str, Any]) -> None:
    shutil.copy(ADAPTER / WEIGHTS, tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps(changed(VALID, tuple(case["path"]), case["value"])))
    attempt(case, lambda: read(tmp_path))
