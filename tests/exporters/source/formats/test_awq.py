"""Tests of AWQ checkpoints: both layouts against a bit-by-bit oracle, what is kept, and what is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.checkpoints import edit_config, edit_tensors
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.exporters.packed_checkpoints import (
    Integers,
    Parts,
    awq_parts,
    gemv_parts,
    random_integers,
    seed_of,
    write_twins,
)

NAME = "model.layers.1.mlp.down_proj"
SETTINGS: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def write(model: Path, root: Path, parts: Callable[[Integers], Parts], **changes: Any) -> tuple[Path, Path]:
    """An AWQ checkpoint of all projections, and its twin; changes: of the settings."""
    settings = {**SETTINGS, **changes}

    def pack(name: str, shape: tuple[int, ...]) -> tuple[Parts, np.ndarray]:
        made = random_integers(
            *shape[-2:],
            seed_of(name),
            bits=4,
            group_size=settings["group_size"],
            symmetric=not settings["zero_point"],
        )
        return parts(made), made.numbers

    return write_twins(model, root, pack, settings)


@pytest.fixture(scope="module")
def written(checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in version gemm; tests that damage it copy it."""
    return write(checkpoint("qwen2"), tmp_path_factory.mktemp("awq"), awq_parts)[0]


@pytest.fixture
def packed(written: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "model"))


CASES: dict[str, tuple[Callable[[Integers], Parts], dict[str, Any]]] = {
    "gemm": (awq_parts, {}),
    "gemm, whole rows": (awq_parts, {"group_size": -1}),
    "gemm, zero points in the middle": (awq_parts, {"zero_point": False, "version": "GEMM"}),
    "gemv": (gemv_parts, {"version": "gemv"}),
    "gemv, small groups": (gemv_parts, {"version": "gemv", "group_size": 16}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layout_equals_its_twin(case: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    parts, changes = CASES[case]
    packed, twin = write(checkpoint("qwen2"), tmp_path, parts, **changes)
    got, expected = open_checkpoint(str(packed)), open_checkpoint(str(twin))
    assert got.format.name == "awq" and got.tensors.keys() == expected.tensors.keys()
    for name in expected.tensors:
        values = expected.read(name).numpy()
        np.testing.assert_array_equal(got.read(name).numpy(), values, err_msg=name)
        rows = got.codes(name)
        assert (rows is not None) == name.endswith("_proj.weight")
        if rows is not None:
            np.testing.assert_array_equal(rows.restore(), values)
            assert rows.bits == 4 and rows.order is None
            assert rows.offset == ("" if changes.get("zero_point") is False else "zero_points")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scales_are_halves_if_the_file_has_such(dtype: torch.dtype, packed: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{NAME}.scales"] = tensors[f"{NAME}.scales"].to(dtype)

    edit_tensors(packed, change)
    rows = open_checkpoint(str(packed)).codes(f"{NAME}.weight")
    assert rows is not None and rows.halves is (dtype == torch.float16)


def test_auto_round_in_the_layout_of_awq(packed: Path) -> None:
    expected = open_checkpoint(str(packed)).read(f"{NAME}.weight")
    packing = {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "bits": 4, "group_size": 32}
    edit_config(packed, quantization_config=packing)
    opened = open_checkpoint(str(packed))
    assert opened.format.name == "awq" and torch.equal(opened.read(f"{NAME}.weight"), expected)


def test_the_older_names_of_settings(packed: Path) -> None:
    expected = open_checkpoint(str(packed)).read(f"{NAME}.weight")
    edit_config(packed, quantization_config={"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM"})
    assert torch.equal(open_checkpoint(str(packed)).read(f"{NAME}.weight"), expected)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"bits": 8}, r"config.json: quantization_config.bits got 8, expected 4; pass the unquantised checkpoint"),
    "group size": (
        {"group_size": 40},
        r"group_size got 40, expected -1 or a divisor of the \d+ inputs of 'model.layers",
    ),
    "other group size": ({"group_size": 16}, r"tensor '.*qzeros' got I32 \[\d, \d+\], expected I32 \[\d, \d+\]"),
    "version": ({"version": "gemv_fast"}, "version got 'gemv_fast', expected gemm or gemv; pass a checkpoint in one"),
    "marlin": ({"version": "marlin", "zero_point": False}, "version got 'marlin', expected gemm or gemv"),
    "llm-awq": ({"backend": "llm-awq"}, "version got 'gemm', expected gemm or gemv"),
    "gemm as gemv": ({"version": "gemv"}, "tensor '.*' got|expected .* or more|divisor of the"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_settings_that_are_refused(case: str, packed: Path) -> None:
    changes, message = FAULTS[case]
    edit_config(packed, quantization_config={**SETTINGS, **changes})
    with pytest.raises((ExportError, UnsupportedError), match=message) as caught:
        open_checkpoint(str(packed))
    assert str(caught.value).startswith(str(packed))


def test_tensors_that_are_refused(packed: Path) -> None:
    edit_tensors(packed, lambda tensors: tensors.pop(f"{NAME}.qzeros"))
    with pytest.raises(ExportError, match=rf"tensor '{NAME}.qzeros' is missing, expected \[3, 8\]; download"):
        open_checkpoint(str(packed))
    edit_config(packed, quantization_config={**SETTINGS, "zero_point": False})
    with pytest.raises(
        UnsupportedError, match=r"zero_point got false, and there is no tensor '.*qzeros', expected zero"
    ):
        open_checkpoint(str(packed))


def test_gemv_without_enough_zero_points(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    packed, _ = write(checkpoint("qwen2"), tmp_path, gemv_parts, version="gemv", group_size=16)
    edit_tensors(packed, lambda tensors: tensors.update({f"{NAME}.qzeros": tensors[f"{NAME}.qzeros"][:, :0].clone()}))
    with pytest.raises(ExportError, match=rf"tensor '{NAME}.qzeros' got zero points of 0 groups, expected 6 or more"):
        open_checkpoint(str(packed))


def test_a_scale_that_is_no_number(packed: Path) -> None:
    edit_tensors(packed, lambda tensors: tensors[f"{NAME}.scales"].view(-1).__setitem__(5, float("inf")))
    rows = open_checkpoint(str(packed)).codes(f"{NAME}.weight")
    assert rows is not None
    with pytest.raises(ExportError, match=rf"model.safetensors: tensor '{NAME}.scales' holds NaN or infinity"):
        rows.load()
