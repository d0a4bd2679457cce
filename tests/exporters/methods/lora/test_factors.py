"""Tests of factors read from adapters and of adapters written, against PEFT's own reading and merging of the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from enginewright.exporters.methods.lora import Config
from enginewright.exporters.methods.lora.factors import read_factors
from enginewright.exporters.methods.lora.write_adapter import write_adapter
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.adapted import make_base, merge
from tests.support.exporters.adapters import make_base_model, merge_with_peft, train_with_peft

PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "linear layers": ("llama", {"target_modules": "all-linear"}),
    "rank-stabilised, with patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "use_rslora": True,
            "rank_pattern": {r"layers\.1\..*v_proj": 3},
            "alpha_pattern": {"v_proj": 5},
        },
    ),
    "Conv1D": ("gpt2", {"target_modules": ["c_proj"]}),
}

NOT_PLAIN: dict[str, tuple[str, dict[str, Any], str]] = {
    "DoRA": ("llama", {"target_modules": ["q_proj"], "use_dora": True}, "got use_dora"),
    "biases of B": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}, "got lora_bias"),
    "biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}, "expected lora_A and lora_B alone"),
    "PiSSA": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "got init_lora_weights"),
    "whole modules": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "got modules_to_save"),
    "rows": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [1]}, "got trainable_token_indices"),
    "an embedding": ("llama", {"target_modules": ["embed_tokens"]}, "no linear layer"),
    "a tied head": ("qwen2", {"target_modules": ["lm_head", "q_proj"]}, "tied"),
}


def changes_of(family: str, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT's merge adds to each linear layer's weight, as [o, n]."""
    before, after = make_base_model(family), merge_with_peft(make_base_model(family), adapter)
    old = dict(before.named_parameters())
    return {
        name.removesuffix(".weight"): (new - old[name]).T if family == "gpt2" else new - old[name]
        for name, new in after.named_parameters()
        if not torch.equal(new, old[name])
    }


@pytest.mark.parametrize("case", PLAIN)
def test_factors_are_what_peft_adds(case: str, tmp_path: Path) -> None:
    family, settings = PLAIN[case]
    adapter = train_with_peft(make_base_model(family), tmp_path / "adapter", **settings)
    found = read_factors(adapter, make_base(family, tmp_path / "base").checkpoint)
    expected = changes_of(family, adapter)
    assert found.keys() == expected.keys() and list(found) == list(expected)
    for module, layer in found.items():
        b, a = layer.load()
        assert layer.module == module and layer.stored == torch.float32
        assert layer.shape == (b.shape[0], a.shape[1]) and layer.rank == a.shape[0] == b.shape[1]
        torch.testing.assert_close(b @ a, expected[module], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_more_than_factors_is_refused(case: str, tmp_path: Path) -> None:
    family, settings, message = NOT_PLAIN[case]
    adapter = train_with_peft(make_base_model(family), tmp_path / "adapter", **settings)
    with pytest.raises(UnsupportedError, match=message):
        read_factors(adapter, make_base(family, tmp_path / "base").checkpoint)


def test_another_models_adapter_is_refused(tmp_path: Path) -> None:
    adapter = train_with_peft(make_base_model("llama"), tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    with pytest.raises(ExportError, match="got rank 4, expected 5"):
        read_factors(adapter, make_base("llama", tmp_path / "base").checkpoint)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [None, 12.0])
def test_what_is_written_is_read_by_peft_and_by_lora(alpha: float | None, dtype: torch.dtype, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    generator = torch.Generator().manual_seed(1)
    factors = {}
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        out, into = base.model.get_submodule(module).weight.shape
        factors[module] = (
            torch.randn(out, 3, generator=generator).to(dtype).float(),
            torch.randn(3, into, generator=generator).to(dtype).float(),
        )
    write_adapter(tmp_path / "written", factors, base="a model", alpha=alpha, dtype=dtype)
    assert {x.dtype for x in load_file(tmp_path / "written/adapter_model.safetensors").values()} == {dtype}
    by_peft = changes_of("llama", tmp_path / "written")
    merged = merge(base, Config(path=str(tmp_path / "written")))
    assert by_peft.keys() == factors.keys()
    for module, (b, a) in factors.items():
        expected = b @ a * (1 if alpha is None else alpha / 3)
        torch.testing.assert_close(by_peft[module], expected, atol=1e-5, rtol=1e-5)
        own = torch.from_numpy(merged[f"{module}.weight"].load()) - base.model.get_submodule(module).weight
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    read = read_factors(tmp_path / "written", base.checkpoint)
    assert all(layer.stored == dtype for layer in read.values())
    assert sorted(path.name for path in (tmp_path / "written").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_factors_of_two_ranks_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ranks \[2, 3\]"):
        write_adapter(tmp_path / "x", {"a": (torch.ones(4, 2), torch.ones(3, 4))}, base="")
    assert not (tmp_path / "x").exists()
