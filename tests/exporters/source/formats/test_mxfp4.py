"""Tests of gpt-oss' experts in MXFP4: numbers against transformers' own, codes, and what is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.errors import ExportError
from tests.support.exporters.checkpoints import edit_tensors
from tests.support.exporters.mxfp4_files import EXPERTS, write_mxfp4
from tests.support.exporters.packed_checkpoints import Parts


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint with experts in MXFP4, and its twin; tests that damage it copy it."""
    return write_mxfp4(tmp_path_factory.mktemp("mxfp4"))


@pytest.fixture
def packed(twins: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(twins[0], tmp_path / "model"))


def test_numbers_and_places_are_those_of_transformers(twins: tuple[Path, Path]) -> None:
    got, expected = (open_checkpoint(str(path)) for path in twins)
    assert got.format.name == "mxfp4" and got.tensors.keys() == expected.tensors.keys()
    assert not [name for name in got.tensors if name.endswith(("_blocks", "_scales"))]
    assert not hasattr(got.config, "quantization_config")
    for name in expected.tensors:
        values = expected.read(name).numpy()
        np.testing.assert_array_equal(got.read(name).numpy(), values, err_msg=name)
    assert got.tensors[EXPERTS].codes == "MXFP4" and not got.tensors[EXPERTS].restored
    assert not got.tensors["model.layers.0.mlp.router.weight"].codes


def test_codes_of_each_expert_are_kept(twins: tuple[Path, Path]) -> None:
    opened = open_checkpoint(str(twins[0]))
    whole = open_checkpoint(str(twins[1])).read(EXPERTS).numpy()
    model = build_skeleton(opened.config, attention="eager", max_context=64).model
    weights = bind_parameters(opened, model, restored="")
    for name in (EXPERTS, EXPERTS.replace("gate_up", "down")):
        assert weights[name].quantized is None and len(weights[name].parts) == 4
        assert all(part.quantized is not None and part.quantized.group_size == 32 for part in weights[name].parts)
    for expert, part in enumerate(weights[EXPERTS].parts):
        np.testing.assert_array_equal(part.load(), whole[expert : expert + 1])
        np.testing.assert_array_equal(opened.read(EXPERTS, expert).numpy(), whole[expert : expert + 1])
        assert part.quantized is not None
        codes, scales = part.quantized.load()
        assert part.quantized.bits == 5  # which holds -12 to 12
        assert codes.shape == (192, 64) and scales.shape == (192, 2) and np.abs(codes).max() == 12


@pytest.mark.parametrize("exponent", [0, 1, 127, 252])
def test_every_code_at_the_ends_of_the_scales(exponent: int, packed: Path) -> None:
    shape = (4, 192, 2, 16)
    blocks = torch.arange(4 * 192 * 2 * 16).remainder(256).to(torch.uint8).reshape(shape)
    scales = torch.full(shape[:3], exponent, dtype=torch.uint8)
    edit_tensors(packed, lambda parts: parts.update({f"{EXPERTS}_blocks": blocks, f"{EXPERTS}_scales": scales}))
    opened = open_checkpoint(str(packed))
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy()
    np.testing.assert_array_equal(opened.read(EXPERTS).numpy(), expected)
    rows = opened.codes(EXPERTS, 2)
    assert rows is not None
    np.testing.assert_array_equal(rows.restore(), expected[2])


def shorten(part: str, axis: int) -> Callable[[Parts], object]:
    """A change that takes the last slice off a part."""

    def change(parts: Parts) -> None:
        value = parts[f"{EXPERTS}_{part}"]
        parts[f"{EXPERTS}_{part}"] = value.narrow(axis, 0, value.shape[axis] - 1).clone()

    return change


FAULTS: dict[str, tuple[Callable[[Parts], Any], str]] = {
    "no scales": (
        lambda parts: parts.pop(f"{EXPERTS}_scales"),
        rf"'{EXPERTS}_scales' is missing, expected \[4, 192, 2\]",
    ),
    "fewer scales": (shorten("scales", 2), rf"'{EXPERTS}_scales' got U8 \[4, 192, 1\], expected U8 \[4, 192, 2\]"),
    "small blocks": (
        shorten("blocks", 3),
        rf"'{EXPERTS}_blocks' got \[4, 192, 2, 15\], expected \[experts, rows, blocks, 16\]",
    ),
    "signed": (
        lambda parts: parts.update({f"{EXPERTS}_blocks": parts[f"{EXPERTS}_blocks"].view(torch.int8)}),
        rf"'{EXPERTS}_blocks' got I8 .*, expected U8",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_tensors_that_are_refused(case: str, packed: Path) -> None:
    change, message = FAULTS[case]
    edit_tensors(packed, change)
    with pytest.raises(ExportError, match=message) as caught:
        open_checkpoint(str(packed))
    assert str(caught.value).startswith(str(packed))


@pytest.mark.parametrize("exponent", [253, 255])
def test_a_scale_that_is_no_number(exponent: int, packed: Path) -> None:
    edit_tensors(packed, lambda parts: parts[f"{EXPERTS}_scales"].view(-1).__setitem__(0, exponent))
    opened = open_checkpoint(str(packed))
    rows = opened.codes(EXPERTS, 0)
    assert rows is not None
    with pytest.raises(
        ExportError, match=rf"tensor '{EXPERTS}_scales' holds NaN or infinity; the checkpoint is damaged"
    ):
        rows.load()
    opened.read(EXPERTS, 1)
