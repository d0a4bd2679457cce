"""Tests of adapters by the names of an earlier transformers, against PEFT and against sums over the checkpoint's own tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from enginewright.exporters.methods.lora import Config
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.adapted import Base, make_base, merge
from tests.support.exporters.adapters import Adapter, make_base_model, merge_with_peft

TOLERANCE = 1e-7  # PEFT sums the products of all experts in one einsum; weights reach 0.1 here
NAMES = {  # family -> the module of experts, and its projections [inner, hidden], [inner, hidden] and [hidden, inner]
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
}


def earlier_adapter(model: PreTrainedModel, family: str, projections: tuple[str, ...] = (), **settings: Any) -> Adapter:
    """An adapter of experts, router and attention, by the names that transformers 4 had for them."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    hidden, experts = config.hidden_size, NAMES[family][0]
    inner = getattr(config, "moe_intermediate_size", 0) or config.intermediate_size
    sizes = {f"model.layers.{layer}.self_attn.q_proj": (64, hidden) for layer in range(2)}
    sizes |= {f"model.layers.{layer}.{experts}.gate": (4, hidden) for layer in range(2)}
    gate, up, down = NAMES[family][1]
    for layer in range(2):
        for expert in range(4):
            one = f"model.layers.{layer}.{experts}.experts.{expert}"
            sizes |= {
                f"{one}.{gate}": (inner, hidden),
                f"{one}.{up}": (inner, hidden),
                f"{one}.{down}": (hidden, inner),
            }
    chosen = {name: size for name, size in sizes.items() if not projections or name.rpartition(".")[2] in projections}
    pairs = {
        name: (torch.randn(4, into, generator=generator) * 0.1, torch.randn(out, 4, generator=generator) * 0.1)
        for name, (out, into) in chosen.items()
    }
    targets = sorted({name.rpartition(".")[2] for name in pairs})
    return Adapter(pairs, {"target_modules": targets, **settings})


def summed(base: Base, adapter: Adapter, tmp_path: Path, scaling: float) -> dict[str, Weight]:
    """The weights of a checkpoint to whose own tensors scaling * B A is added."""
    source, target = Path(str(base.checkpoint.path)), tmp_path / "summed"
    base.model.save_pretrained(target)
    tensors = load_file(source / "model.safetensors")
    for name, (a, b) in adapter.pairs.items():
        tensors[f"{name}.weight"] += b @ a * scaling
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return bind_parameters(open_checkpoint(str(target)), base.model)


def check_equal(got: dict[str, Weight], expected: dict[str, np.ndarray], tolerance: float) -> None:
    for name, values in expected.items():
        made = got[name].load()
        assert np.abs(made - values).max() <= tolerance, name
        for part, weight in enumerate(got[name].parts):
            assert np.array_equal(weight.load(), made[part : part + 1]), name


@pytest.mark.parametrize("family", NAMES)
def test_every_expert_equals_peft(family: str, tmp_path: Path) -> None:
    base = make_base(family, tmp_path / "model")
    adapter = earlier_adapter(base.model, family)
    config = Config(path=str(adapter.save(tmp_path / "a")))
    merged = merge_with_peft(make_base_model(family), tmp_path / "a")
    got = merge(base, config)
    check_equal(got, {name: p.detach().numpy() for name, p in merged.named_parameters()}, TOLERANCE)
    check_equal(got, {name: w.load() for name, w in summed(base, adapter, tmp_path, 2.0).items()}, 0)
    assert len(got["model.layers.0.mlp.experts.gate_up_proj"].parts) == 4


# PEFT refuses some of these, and scales others by what the fused parameter's rank would be: each pair counts as it was trained.
AS_TRAINED: dict[str, tuple[tuple[str, ...], dict[str, Any], float]] = {
    "one half of a fused parameter": (("up_proj",), {}, 2.0),
    "rank-stabilised": ((), {"use_rslora": True}, 8 / math.sqrt(4)),
    "alphas by pattern": (("gate_proj", "up_proj"), {"alpha_pattern": {r"experts\.\d+\.(gate|up)_proj": 2}}, 0.5),
}


@pytest.mark.parametrize("case", AS_TRAINED)
def test_pairs_count_as_trained(case: str, tmp_path: Path) -> None:
    projections, settings, scaling = AS_TRAINED[case]
    base = make_base("qwen3_moe", tmp_path / "model")
    adapter = earlier_adapter(base.model, "qwen3_moe", projections, **settings)
    got = merge(base, Config(path=str(adapter.save(tmp_path / "a"))))
    expected = summed(base, adapter, tmp_path, scaling)
    check_equal(got, {name: w.load() for name, w in expected.items()}, 0)


def test_some_experts_and_a_factor(tmp_path: Path) -> None:
    base = make_base("qwen3_moe", tmp_path / "model")
    adapter = earlier_adapter(base.model, "qwen3_moe", ("up_proj", "down_proj"))
    adapter.pairs = {name: pair for name, pair in adapter.pairs.items() if ".experts.2." in name}
    config = Config(path=str(adapter.save(tmp_path / "a")), weight=0.5)
    got = merge(base, config)
    check_equal(got, {name: w.load() for name, w in summed(base, adapter, tmp_path, 1.0).items()}, 0)
    name = "model.layers.1.mlp.experts.down_proj"
    assert got[name].parts[0] is base.weights[name].parts[0], "an expert without a pair keeps its recipe"


def test_a_checkpoint_that_holds_the_fused_parameters(tmp_path: Path) -> None:
    base = make_base("qwen3_moe", tmp_path / "model")
    base.model.save_pretrained(tmp_path / "fused", save_original_format=False)
    with safe_open(tmp_path / "fused" / "model.safetensors", framework="pt") as file:
        assert "model.layers.0.mlp.experts.gate_up_proj" in file.keys(), "the checkpoint must be fused"  # noqa: SIM118
    fused = make_base("qwen3_moe", tmp_path / "fused")
    adapter = earlier_adapter(base.model, "qwen3_moe")
    got = merge(fused, Config(path=str(adapter.save(tmp_path / "a"))))
    check_equal(got, {name: w.load() for name, w in summed(base, adapter, tmp_path, 2.0).items()}, 0)
    adapter.pairs = {name: pair for name, pair in adapter.pairs.items() if ".experts.2." in name}
    with pytest.raises(UnsupportedError, match=r"pairs of all its parts are needed"):
        merge(fused, Config(path=str(adapter.save(tmp_path / "b"))))


def test_several_adapters_add_up(tmp_path: Path) -> None:
    base = make_base("qwen3_moe", tmp_path / "model")
    adapter = earlier_adapter(base.model, "qwen3_moe")
    config = Config(path=str(adapter.save(tmp_path / "a")))
    half = Config(path=config.path, weight=0.5)
    expected = summed(base, adapter, tmp_path, 2.0)
    got = merge(base, half, half)
    check_equal(got, {name: w.load() for name, w in expected.items()}, TOLERANCE)


def drop_row(adapter: Adapter, name: str) -> None:
    a, b = adapter.pairs[name]
    adapter.pairs[name] = a, b[1:].clone()


def add_rank(adapter: Adapter, name: str) -> None:
    a, b = adapter.pairs[name]
    adapter.pairs[name] = torch.cat([a, a]), torch.cat([b, b], 1)


@pytest.mark.parametrize(
    ("damage", "settings", "error", "message"),
    [
        (drop_row, {}, ExportError, r"got A \[4, 64\] and B \[23, 4\], expected a product of \[24, 64\]"),
        (add_rank, {}, ExportError, r"got rank 8, expected 4"),
        (lambda *_: None, {"init_lora_weights": "pissa"}, UnsupportedError, r"no layer of its own: init_lora_weights"),
    ],
)
def test_refused(damage: Any, settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    base = make_base("qwen3_moe", tmp_path / "model")
    adapter = earlier_adapter(base.model, "qwen3_moe", ("up_proj",), **settings)
    damage(adapter, "model.layers.1.mlp.experts.3.up_proj")
    with pytest.raises(error, match=message):
        merge(base, Config(path=str(adapter.save(tmp_path / "a"))))
