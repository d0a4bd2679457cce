"""Tests of compressed-tensors: what the library itself compresses is read as the numbers that it decompresses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import load_skeleton
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.families import save_checkpoint

MODULE = "model.layers.0.mlp.up_proj"
WEIGHTS: dict[str, tuple[str, dict[str, Any]]] = {
    "int4 groups": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}),
    "int4 zero points": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "int3 rows": ("pack-quantized", {"num_bits": 3, "type": "int", "strategy": "channel"}),
    "int8 rows": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "float8 rows": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "float8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "mxfp4": ("mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}),
}


def compress(
    weight: torch.Tensor, layout: str, settings: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors that the library makes of a matrix, by the last parts of their names, and the numbers that it restores."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**settings))
    groups = weight.reshape(len(weight), -1, settings.get("group_size") or weight.shape[1])
    largest = weight.abs().max().reshape(1) if settings["strategy"] == "tensor" else groups.abs().amax(-1)
    bits, state = settings["num_bits"], {"weight": weight}
    if settings["type"] == "float":
        state["weight_scale"] = largest / 448 if bits == 8 else torch.exp2(torch.ceil(torch.log2(largest / 6)))
    elif settings.get("symmetric", True):
        state["weight_scale"] = largest / (2 ** (bits - 1) - 1)
    else:
        low = groups.amin(-1)
        state["weight_scale"] = (groups.amax(-1) - low) / (2**bits - 1)
        zeros = torch.round(-low / state["weight_scale"]) - 2 ** (bits - 1)
        state["weight_zero_point"] = zeros.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8)
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = compressor.compress(state, scheme)
    return stored, compressor.decompress(stored, scheme)["weight"].float()


def quantise(path: Path, layout: str, settings: dict[str, Any], **changes: Any) -> dict[str, torch.Tensor]:
    """Quantise all projections of the checkpoint in place; return the numbers that the library restores, by name."""
    tensors, numbers = load_file(path / "model.safetensors"), {}
    for name in [name for name in tensors if "_proj" in name and name.endswith(".weight")]:
        stored, numbers[name] = compress(tensors.pop(name).float(), layout, settings)
        tensors |= {f"{name.removesuffix('weight')}{part}": value.contiguous() for part, value in stored.items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "group_size": None, **settings}, "format": layout}
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        **changes,
    }
    (path / "config.json").write_text(json.dumps(config))
    return numbers


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A small checkpoint of numbers."""
    save_checkpoint("llama", tmp_path / "m", hidden_size=64, num_attention_heads=4, intermediate_size=128)
    return tmp_path / "m"


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_the_library_compresses(name: str, llama: Path) -> None:
    layout, settings = WEIGHTS[name]
    expected = quantise(llama, layout, settings)
    opened = open_checkpoint(str(llama))
    assert len(expected) == 7 * opened.config.num_hidden_layers
    weights = bind_parameters(opened, load_skeleton(opened, attention="eager", max_context=64).model, restored="")
    for tensor, numbers in expected.items():
        np.testing.assert_allclose(opened.read(tensor).numpy(), numbers.numpy(), rtol=1e-6, atol=0)
        np.testing.assert_array_equal(weights[tensor].load(), opened.read(tensor).numpy())
        assert (weights[tensor].quantized is None) == name.startswith("float8")
    stored = opened.tensors[f"{MODULE}.weight"]
    assert bool(stored.restored) == name.startswith("float8") and stored.codes


def test_nvfp4(llama: Path) -> None:
    """The library's own decompression fails on float8 scales here, so the numbers are made by hand."""
    tensors = load_file(llama / "model.safetensors")
    rows, columns = tensors[f"{MODULE}.weight"].shape
    random = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (rows, columns // 2), generator=random, dtype=torch.uint8)
    scales = (torch.rand((rows, columns // 16), generator=random) * 8).to(torch.float8_e4m3fn)
    del tensors[f"{MODULE}.weight"]
    tensors |= {f"{MODULE}.weight_packed": packed, f"{MODULE}.weight_scale": scales}
    tensors[f"{MODULE}.weight_global_scale"] = torch.tensor([32.0])
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}
    config = json.loads((llama / "config.json").read_text())
    group = {"targets": [MODULE], "weights": weights, "format": "nvfp4-pack-quantized"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": group},
    }
    (llama / "config.json").write_text(json.dumps(config))
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    codes = np.stack([packed.numpy() & 15, packed.numpy() >> 4], -1).reshape(rows, columns)
    expected = table[codes].reshape(rows, -1, 16) * (scales.float().numpy() / 32)[..., None]
    found = open_checkpoint(str(llama)).read(f"{MODULE}.weight").numpy()
    np.testing.assert_allclose(found, expected.reshape(rows, columns), rtol=1e-6, atol=0)


INT4 = WEIGHTS["int4 groups"]


def damage_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{MODULE}.weight_shape"] = torch.tensor([128, 65])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{MODULE}.weight_scale"), "'model.layers.0.mlp.up_proj.weight_scale'"),
        (damage_shape, r"'model.layers.0.mlp.up_proj.weight_shape' got \[128, 65\]"),
        (
            lambda t: t.update({f"{MODULE}.weight_scale": torch.ones(128, 3)}),
            r"weight_scale' got F32 \[128, 3\], expected .* \[128, 2\]",
        ),
        (
            lambda t: t.update({f"{MODULE}.weight_packed": torch.ones(128, 8)}),
            "'model.layers.0.mlp.up_proj.weight_packed' got F32",
        ),
    ],
)
def test_damaged_tensors(change: Any, message: str, llama: Path) -> None:
    quantise(llama, *INT4)
    tensors = load_file(llama / "model.safetensors")
    change(tensors)
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=message):
        _ = open_checkpoint(str(llama)).tensors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config: got format 'sparse-24-bitmask'"),
        (
            {"transform_config": {"config_groups": {"R4": {"apply": [{"location": "input"}]}}}},
            "transform_config.config_groups.R4: got a transform at 'input'",
        ),
        ({"ignore": [MODULE]}, f"ignore: got '{MODULE}'"),
        ({"format": "marlin-24", "config_groups": {"g": {"targets": ["Linear"], "weights": INT4[1]}}}, "marlin-24"),
        (
            {"config_groups": {"g": {"targets": ["Linear"], "weights": {**INT4[1], "group_size": 48}}}},
            "48",
        ),
        (
            {"config_groups": {"g": {"targets": ["Linear"], "weights": {**INT4[1], "actorder": "group"}}}},
            "weight_g_idx' is missing",
        ),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str, llama: Path) -> None:
    quantise(llama, *INT4, **changes)
    with pytest.raises((ExportError, UnsupportedError), match=message):
        _ = open_checkpoint(str(llama)).tensors


def test_what_is_not_used_is_named(llama: Path) -> None:
    quantise(llama, *INT4, kv_cache_scheme={"num_bits": 8}, invented=1)
    opened = open_checkpoint(str(llama))
    told = [str(each) for each in (*opened.unused.parts, *opened.source.unused())]
    assert any("kv_cache_scheme" in line and "--kv-bits" in line for line in told)
    assert any("quantization_config.invented" in line for line in told)
