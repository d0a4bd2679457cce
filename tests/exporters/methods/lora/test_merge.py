"""Tests of merged adapters against PEFT: the parameters that its merge gives, and the logits of its model where it merges wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginewright.exporters.methods.lora import Config
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe
from enginewright.exporters.source.reference import load_reference
from enginewright.runtime.errors import ExportError, UnsupportedError
from enginewright.runtime.loader import load
from tests.support.exporters.adapted import make_base, make_base_of, merge
from tests.support.exporters.adapters import load_with_peft, make_base_model, merge_with_peft, train_with_peft
from tests.support.exporters.fixtures import EngineMaker

TOKENS = torch.arange(3, 43)[None] * 5 % 250
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

# Each is equal to the bit, because the same operations run in the same order.
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "linear layers": ("llama", {"target_modules": "all-linear"}),
    "rank-stabilised, with patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "use_rslora": True,
            "rank_pattern": {r"layers\.1\..*v_proj": 3, "q_proj": 7},
            "alpha_pattern": {"down_proj": 5, r".*0\.self_attn\.q_proj": 3},
        },
    ),
    "head and embedding": ("llama", {"target_modules": ["lm_head", "embed_tokens", "q_proj"]}),
    "DoRA": ("llama", {"target_modules": ["lm_head", "embed_tokens", "q_proj", "down_proj"], "use_dora": True}),
    "DoRA of Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "all biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
    "biases of adapted layers": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"}),
    "biases of B": ("qwen2", {"target_modules": ["q_proj", "k_proj"], "lora_bias": True}),
    "biases of B and of layers": ("gpt2", {"target_modules": ["c_proj"], "lora_bias": True, "bias": "all"}),
    "whole modules": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm", "embed_tokens"]}),
    "a whole head, tied before": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "a whole embedding, tied before": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "a whole embedding that stays tied": (
        "qwen2",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "token rows": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 249, 5]}),
    "token rows of both ends": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [3]}},
    ),
    "token rows, tied": ("qwen2", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]}),
    "token rows of both ends, tied": (
        "qwen2",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [1, 5]}},
    ),
    "PiSSA": ("llama", {"target_modules": ["q_proj", "down_proj", "embed_tokens"], "init_lora_weights": "pissa"}),
    "PiSSA of Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "init_lora_weights": "pissa"}),
    "PiSSA with DoRA": ("llama", {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa", "use_dora": True}),
    "OLoRA": ("llama", {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": "olora", "use_rslora": True}),
    "MiCA": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "mica"}),
    "VeLoRA": ("llama", {"target_modules": ["q_proj"], "velora_config": {"num_groups": 1}}),
    "a router": ("qwen3_moe", {"target_modules": [], "target_parameters": ["gate.weight"]}),
    "some layers": (
        "llama",
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1], "exclude_modules": ["v_proj"]},
    ),
}  # fmt: skip

# PEFT computes the products of all experts in one einsum, whose sums have another order; weights reach 0.1 here.
ROUNDED: dict[str, tuple[str, dict[str, Any]]] = {
    "experts": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "one parameter of the experts": ("qwen3_moe", {"target_modules": [], "target_parameters": EXPERTS[1:]}),
    "experts with patterns": (
        "qwen3_moe",
        {"target_modules": [], "target_parameters": EXPERTS, "rank_pattern": {"gate_up_proj": 3}, "alpha_pattern": {"down_proj": 1}},
    ),
    "experts stored as [in, out]": ("gpt_oss", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
}  # fmt: skip
CASES = {**EXACT, **ROUNDED}

# PEFT merges in place, into a parameter that two modules share, which gives neither what it was trained to. So these are
# compared with PEFT's model before it is merged: logits reach 30 here, and merging changes the order of float32 sums.
UNTIED: dict[str, dict[str, Any]] = {
    "the head": {"target_modules": ["lm_head"]},
    "the embedding": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "both in one way": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "the head with DoRA": {"target_modules": ["lm_head"], "use_dora": True},
    "token rows of the head": {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [7]}},
    "token rows of both": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [1, 5], "lm_head": [7]},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_merged_equals_peft(case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    base = make_base(family, tmp_path / "model")
    root = train_with_peft(make_base_model(family), tmp_path / "a", **settings)
    expected = merge_with_peft(make_base_model(family), root)
    got = merge(base, Config(path=str(root)))
    assert _agrees(got, expected, 0 if case in EXACT else 1e-7) > 0


def _agrees(got: dict[str, Any], expected: torch.nn.Module, tolerance: float) -> int:
    """Compare the weights with the parameters of a merged model; returns how many differ from those of the base."""
    changed = 0
    for name, parameter in expected.named_parameters(remove_duplicate=False):
        values, wanted = got[name].load(), parameter.detach().numpy()
        assert np.abs(values - wanted).max() <= tolerance, name
        for part, weight in enumerate(got[name].parts):
            assert np.array_equal(weight.load(), values[part : part + 1]), name
        changed += type(got[name]).__name__ == "AdaptedWeight"
    return changed


@pytest.mark.parametrize("case", UNTIED)
def test_tied_parameters_part(case: str, tmp_path: Path) -> None:
    base = make_base("qwen2", tmp_path / "model")
    root = train_with_peft(make_base_model("qwen2"), tmp_path / "a", **UNTIED[case])
    with torch.no_grad():
        expected = load_with_peft(make_base_model("qwen2"), root)(input_ids=TOKENS).logits
        config = Config(path=str(root))
        reference = load_reference(str(base.checkpoint.path), (Applied("lora", config),))
        got = reference(input_ids=TOKENS).logits
    assert (got - expected).abs().max() < 2e-5
    one = reference.get_input_embeddings().weight is reference.get_output_embeddings().weight
    assert one == (case == "both in one way")


ENGINES = {
    "DoRA with a whole norm": ("llama", {**EXACT["DoRA"][1], "modules_to_save": ["norm"]}),
    "a head that was tied": ("qwen2", {**UNTIED["both"], "bias": "all"}),
    "an embedding that was tied": ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "experts": ROUNDED["experts stored as [in, out]"],
    "Conv1D": EXACT["biases of B and of layers"],
}


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize("case", ENGINES)
def test_an_engine_gives_the_logits_of_peft(case: str, engine: EngineMaker, tmp_path: Path) -> None:
    family, settings = ENGINES[case]
    model = make_base_model(family)
    model.save_pretrained(tmp_path / "model")
    config = Config(path=str(train_with_peft(model, tmp_path / "a", **settings)))
    with torch.no_grad():
        expected = load_with_peft(make_base_model(family), tmp_path / "a")(input_ids=TOKENS).logits[0].numpy()
    root, _ = engine(tmp_path / "model", Recipe(kv_bits=32, apply=(Applied("lora", config),)))
    with load(root, threads=1) as llm:
        assert np.abs(llm.logits(TOKENS[0].tolist()) - expected).max() < 5e-5


def test_what_adds_is_summed(tmp_path: Path) -> None:
    """PEFT merges several adapters one after another; the result is the same to the bit."""
    base = make_base("qwen2", tmp_path / "model")
    first = train_with_peft(make_base_model("qwen2"), tmp_path / "a", target_modules=["q_proj"], lora_bias=True)
    second = train_with_peft(
        make_base_model("qwen2"), tmp_path / "b", target_modules=["q_proj", "v_proj"], lora_alpha=3
    )
    adapted = load_with_peft(make_base_model("qwen2"), first)
    adapted.load_adapter(second, "second")
    adapted.base_model.set_adapter(["default", "second"])
    got = merge(base, Config(path=str(first)), Config(path=str(second)))
    assert _agrees(got, adapted.merge_and_unload(), 0) > 0


REPLACING: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"target_modules": ["q_proj"], "use_dora": True}, "q_proj"),
    "PiSSA": ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "q_proj"),
    "whole modules": ({"target_modules": ["down_proj"], "modules_to_save": ["q_proj"]}, "q_proj"),
    "token rows": ({"target_modules": ["down_proj"], "trainable_token_indices": [3]}, "model.embed_tokens"),
    "biases": ({"target_modules": ["down_proj"], "bias": "all"}, "_proj.bias"),
}


@pytest.mark.parametrize("case", REPLACING)
def test_what_replaces_has_neither_a_factor_nor_a_sum(case: str, tmp_path: Path) -> None:
    settings, name = REPLACING[case]
    base = make_base("qwen2", tmp_path / "model")
    root, other = (
        str(train_with_peft(make_base_model("qwen2"), tmp_path / str(seed), seed, **settings)) for seed in range(2)
    )
    with pytest.raises(UnsupportedError, match=rf"got weight=0.5, expected 1: the adapter does more with '.*{name}"):
        merge(base, Config(path=root, weight=0.5))
    with pytest.raises(UnsupportedError, match=rf"changes '.*{name}.* after another adapter"):
        merge(base, Config(path=root), Config(path=other))


NOT_IN_PEFT: dict[str, tuple[str, dict[str, Any], str]] = {
    "a bias without a base": ("llama", {"target_modules": ["q_proj"], "lora_bias": True}, "with a bias, and the model's layer has none"),
    "a tied residual": ("qwen2", {"target_modules": ["lm_head"], "init_lora_weights": "pissa"}, "whose weight is tied"),
    "OLoRA of Conv1D": ("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": "olora"}, "a Conv1D"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_IN_PEFT)
def test_what_has_no_merge_is_refused(case: str, tmp_path: Path) -> None:
    family, settings, message = NOT_IN_PEFT[case]
    base = make_base(family, tmp_path / "model")
    root = train_with_peft(make_base_model(family), tmp_path / "a", **settings)
    with pytest.raises(UnsupportedError, match=message):
        merge(base, Config(path=str(root)))


@pytest.mark.parametrize("settings", [{"target_modules": ["embed_tokens"]}, {"target_modules": ["q_proj"]}])
def test_a_resized_vocabulary_is_refused_with_the_way_out(settings: dict[str, Any], tmp_path: Path) -> None:
    """PEFT saves the embeddings with the adapter when their size has changed, whether they are adapted or not."""
    base = make_base("llama", tmp_path / "model")
    model = type(base.model).from_pretrained(tmp_path / "model")
    model.resize_token_embeddings(256)
    root = train_with_peft(model, tmp_path / "a", base_model_name_or_path=str(tmp_path / "model"), **settings)
    with pytest.raises(ExportError, match=r"got 256 tokens, expected the 250 .*resize_token_embeddings\(256\)"):
        merge(base, Config(path=str(root)))
    model = type(base.model).from_pretrained(tmp_path / "model")
    model.resize_token_embeddings(256)
    model.save_pretrained(tmp_path / "resized")
    merged = merge_with_peft(model, root)
    resized = merge(make_base_of(merged, tmp_path / "resized"), Config(path=str(root)))
    assert _agrees(resized, merged, 0) > 0


def test_the_base_beside_a_pair_is_taken_where_it_differs(tmp_path: Path) -> None:
    """PEFT saves the weight of an adapted head with the pair: the same as the model's, or one that training has changed."""
    base = make_base("llama", tmp_path / "model")
    for changed in (False, True):
        model = make_base_model("llama")
        if changed:
            model.lm_head.weight.data[3] += 1
        root = train_with_peft(model, tmp_path / f"{changed}", target_modules=["lm_head"])
        got, expected = merge(base, Config(path=str(root))), merge_with_peft(make_base_model("llama"), root)
        assert _agrees(got, expected, 0) == 1
        assert got["lm_head.weight"].additive is not changed


def test_patterns_that_match_nothing_are_named(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "model")
    root = train_with_peft(
        make_base_model("llama"),
        tmp_path / "a",
        target_modules=["q_proj"],
        rank_pattern={"k_proj": 2},
        alpha_pattern={"q_proj": 3},
    )
    merge(base, Config(path=str(root)))
    assert [(each.file, each.names) for each in base.checkpoint.unused.parts] == [
        ("a/adapter_config.json", ("k_proj",))
    ]
