"""Tests of float8 checkpoints: every layout of scales against an element-by-element oracle, experts, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.checkpoints import edit_config, edit_tensors
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.exporters.packed_checkpoints import Parts, fp8_blocks, seed_of, write_twins

NAME = "model.layers.1.mlp.down_proj"  # [64, 96]
BLOCK = (24, 40)  # divides neither
SETTINGS: dict[str, Any] = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": list(BLOCK),
    "modules_to_not_convert": ["lm_head"],
}


def pack(name: str, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
    """Random float8 numbers in blocks."""
    numbers, scales, products = fp8_blocks(shape, seed_of(name), BLOCK)
    return {"weight": numbers, "weight_scale_inv": scales}, products


@pytest.fixture(scope="module")
def twins(checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint in blocks, and its twin; tests that damage it copy it."""
    return write_twins(checkpoint("qwen2"), tmp_path_factory.mktemp("fp8"), pack, SETTINGS)


@pytest.fixture
def packed(twins: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(twins[0], tmp_path / "model"))


def test_blocks_that_do_not_divide_equal_the_twin(twins: tuple[Path, Path]) -> None:
    got, expected = (open_checkpoint(str(path)) for path in twins)
    assert got.format.name == "fp8" and got.tensors.keys() == expected.tensors.keys()
    for name in expected.tensors:
        np.testing.assert_array_equal(got.read(name).numpy(), expected.read(name).numpy(), err_msg=name)
        assert got.codes(name) is None
    stored = got.tensors[f"{NAME}.weight"]
    assert (stored.codes, stored.restored) == ("float8 e4m3", "its numbers are float8") and not got.unused.parts


def test_numbers_are_those_of_transformers() -> None:
    numbers, scales, products = fp8_blocks((64, 96), 3, (32, 16))
    made = Fp8Dequantize(None)._dequantize_one(numbers, scales, torch.float32)
    np.testing.assert_array_equal(made.numpy(), products)


def replace(packed: Path, parts: Parts, **settings: Any) -> np.ndarray:
    """Replace the parts of one matrix, and return what the source makes of it."""
    drop = ("weight", "weight_scale_inv")

    def change(tensors: Parts) -> None:
        for part in drop:
            tensors.pop(f"{NAME}.{part}", None)
        for name in [name for name in tensors if name.endswith("_scale_inv") and "weight_block_size" in settings]:
            tensors.pop(name)
            stem = name.removesuffix("_scale_inv")
            tensors[stem] = tensors[stem].float()
        tensors.update({f"{NAME}.{part}": value for part, value in parts.items()})

    edit_tensors(packed, change)
    edit_config(packed, quantization_config={**SETTINGS, **settings})
    values: np.ndarray = open_checkpoint(str(packed)).read(f"{NAME}.weight").numpy()
    return values


def of_row(numbers: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """Scales [n, 1] of the rows, and the products."""
    scales = torch.linspace(0.01, 0.2, len(numbers))[:, None]
    return scales, (numbers.float() * scales).numpy()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_one_scale_for_a_matrix(shape: tuple[int, ...], name: str, dtype: torch.dtype, packed: Path) -> None:
    numbers = torch.randn(64, 96).to(dtype)
    got = replace(packed, {"weight": numbers, name: torch.full(shape, 0.37)}, weight_block_size=None)
    np.testing.assert_array_equal(got, numbers.float().numpy() * np.float32(0.37))


def test_a_scale_for_each_row(packed: Path) -> None:
    numbers = torch.randn(64, 96).to(torch.float8_e4m3fn)
    scales, expected = of_row(numbers)
    settings = {"quant_method": "fbgemm_fp8", "weight_block_size": None}
    np.testing.assert_array_equal(replace(packed, {"weight": numbers, "weight_scale": scales}, **settings), expected)


@pytest.mark.parametrize("dtype", [torch.float8_e8m0fnu, torch.uint8])
def test_scales_that_are_powers_of_two(dtype: torch.dtype, packed: Path) -> None:
    numbers = torch.randn(64, 96).to(torch.float8_e4m3fn)
    exponents = torch.arange(9, dtype=torch.uint8).reshape(3, 3) + 120
    parts = {"weight": numbers, "weight_scale_inv": exponents.view(dtype)}
    got = replace(packed, parts, scale_fmt="ue8m0")
    scales = 2.0 ** (exponents.numpy().astype(np.float32) - 127)
    of_column = np.repeat(scales, BLOCK[1], axis=1)[:, :96]
    np.testing.assert_array_equal(got, numbers.float().numpy() * np.repeat(of_column, BLOCK[0], axis=0)[:64])


@pytest.mark.parametrize("kind", ["blocks", "one an expert", "one", "rows"])
def test_experts_in_one_tensor(kind: str, tmp_path: Path) -> None:
    numbers, scales, products = fp8_blocks((3, 50, 48), 1, BLOCK)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    if kind != "blocks":
        shape = {"one an expert": (3, 1, 1), "one": (), "rows": (3, 50, 1)}[kind]
        scales = torch.rand(shape) + 0.5
        products = (numbers.float() * scales).numpy()
    size = SETTINGS["weight_block_size"] if kind == "blocks" else None
    config = {"model_type": "qwen3_moe", "quantization_config": {**SETTINGS, "weight_block_size": size}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: numbers, f"{name}_scale_inv": scales}, tmp_path / "model.safetensors")
    opened = open_checkpoint(str(tmp_path))
    np.testing.assert_array_equal(opened.read(name).numpy(), products)
    for expert in range(3):
        np.testing.assert_array_equal(opened.read(name, expert).numpy(), products[expert : expert + 1])


def test_scales_of_activations_are_named(packed: Path) -> None:
    names = [f"{NAME}.input_scale", "model.layers.0.mlp.up_proj.activation_scale"]
    edit_tensors(packed, lambda tensors: tensors.update({name: torch.ones(()) for name in names}))
    opened = open_checkpoint(str(packed))
    assert not set(names) & opened.tensors.keys()
    (parts,) = opened.unused.parts
    assert set(parts.names) == set(names)
    assert str(parts).startswith("model.safetensors: ") and "not used: engines do not round activations" in str(parts)


def test_float8_is_told_as_restored(packed: Path) -> None:
    opened = open_checkpoint(str(packed))
    model = build_skeleton(opened.config, attention="eager", max_context=64).model
    weight = bind_parameters(opened, model, restored="")[f"{NAME}.weight"]
    assert weight.quantized is None and weight.stored is not None
    assert (weight.stored.name, weight.stored.restored) == ("float8 e4m3", "its numbers are float8")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "one block size": (
        {"weight_block_size": 128},
        "weight_block_size got 128, expected two positive integers; correct it",
    ),
    "a block of no size": ({"weight_block_size": [128, 0]}, r"weight_block_size got \[128, 0\], expected two positive"),
    "other blocks": (
        {"weight_block_size": [128, 128]},
        r"tensor '.*_scale_inv' got F32 \[\d, \d\], expected F32 or BF16 or F16 or F8_E8M0 \[1, 1\]",
    ),
    "experts in 4 bits": ({"expert_dtype": "fp4"}, "expert_dtype got 'fp4', expected fp8; pass the unquantised"),
    "scales to divide by": (
        {"weight_scale_semantics": "inverse"},
        "got GPTQModel's scales, by which weights are divided",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_settings_that_are_refused(case: str, packed: Path) -> None:
    changes, message = FAULTS[case]
    edit_config(packed, quantization_config={**SETTINGS, **changes})
    with pytest.raises((ExportError, UnsupportedError), match=message) as caught:
        open_checkpoint(str(packed))
    assert str(caught.value).startswith(str(packed))


SCALE = f"{NAME}.weight_scale_inv"
TENSORS: dict[str, tuple[Callable[[Parts], object], str]] = {
    "no scale": (lambda parts: parts.pop(SCALE), rf"tensor '{SCALE}' is missing, expected \[3, 3\]; download"),
    "fewer": (
        lambda parts: parts.update({SCALE: parts[SCALE][:2].clone()}),
        rf"tensor '{SCALE}' got F32 \[2, 3\], expected F32 or BF16 or F16 or F8_E8M0 \[3, 3\]",
    ),
    "integers": (
        lambda parts: parts.update({SCALE: parts[SCALE].int()}),
        rf"tensor '{SCALE}' got I32 \[3, 3\], expected",
    ),
    "bytes": (lambda parts: parts.update({SCALE: parts[SCALE].byte()}), rf"tensor '{SCALE}' got U8 \[3, 3\], expected"),
    "a vector": (
        lambda parts: parts.update({f"{NAME}.weight": parts[f"{NAME}.weight"].flatten()}),
        rf"tensor '{NAME}.weight' got F8_E4M3 \[6144\], expected a matrix, or one for each expert",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(case: str, packed: Path) -> None:
    change, message = TENSORS[case]
    edit_tensors(packed, change)
    with pytest.raises(ExportError, match=message) as caught:
        open_checkpoint(str(packed))
    assert str(caught.value).startswith(str(packed))


def test_a_number_that_is_none(packed: Path) -> None:
    edit_tensors(packed, lambda parts: parts[f"{NAME}.weight"].view(torch.uint8).view(-1).__setitem__(5, 0x7F))
    with pytest.raises(ExportError, match=rf"tensor '{NAME}.weight' holds NaN or infinity; the checkpoint is damaged"):
        open_checkpoint(str(packed)).read(f"{NAME}.weight")
