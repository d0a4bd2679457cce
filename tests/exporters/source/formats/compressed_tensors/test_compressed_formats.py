"""Tests of every format of compressed-tensors: numbers are those that the library restores, and codes stand for the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.exporters.weights.weight import QuantizedRows
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.exporters.gguf_files import make_model
from tests.support.exporters.quantized_files import Stored, compress, group, weights

FLOAT = {"type": "float"}
# What is compressed -> settings, whether its codes are kept, and the name of the type.
CASES: dict[str, tuple[str, dict[str, Any], bool, str]] = {
    "int4 groups": ("pack-quantized", weights(4, strategy="group", group_size=32), True, "int4 in groups of 32"),
    "int4 whole rows": ("pack-quantized", weights(4, strategy="channel"), True, "int4 with one scale a row"),
    "int4 zero points": ("pack-quantized", weights(4, strategy="group", group_size=16, symmetric=False), True, "int4 in groups of 16 with zero points"),
    "int3 zero points": ("pack-quantized", weights(3, strategy="channel", symmetric=False), True, "int3 with one scale a row with zero points"),
    "int1": ("pack-quantized", weights(1, strategy="group", group_size=32), True, "int1 in groups of 32"),
    "int2": ("pack-quantized", weights(2, strategy="group", group_size=32, symmetric=False), True, "int2 in groups of 32 with zero points"),
    "int5": ("pack-quantized", weights(5, strategy="group", group_size=32), True, "int5 in groups of 32"),
    "int6": ("pack-quantized", weights(6, strategy="channel"), True, "int6 with one scale a row"),
    "int7": ("pack-quantized", weights(7, strategy="group", group_size=16), True, "int7 in groups of 16"),
    "int8 packed": ("pack-quantized", weights(8, strategy="tensor", symmetric=False), True, "int8 with one scale with zero points"),
    "int8": ("int-quantized", weights(8, strategy="channel"), True, "int8 with one scale a row"),
    "int8 groups": ("int-quantized", weights(8, strategy="group", group_size=16, symmetric=False), True, "int8 in groups of 16 with zero points"),
    "int8 one scale": ("int-quantized", weights(8, strategy="tensor"), True, "int8 with one scale"),
    "int4 unpacked": ("naive-quantized", weights(4, strategy="group", group_size=32), True, "int4 in groups of 32"),
    "int8 blocks": ("naive-quantized", weights(8, strategy="block", block_structure=[24, 16]), True, "int8 in blocks of 24 x 16"),
    "int8 ragged blocks": ("naive-quantized", weights(8, strategy="block", block_structure=[24, 40]), False, "int8 in blocks of 24 x 40"),
    "float8": ("float-quantized", weights(8, **FLOAT, strategy="tensor"), False, "float8 with one scale"),
    "float8 rows": ("float-quantized", weights(8, **FLOAT, strategy="channel"), False, "float8 with one scale a row"),
    "float8 blocks": ("float-quantized", weights(8, **FLOAT, strategy="block", block_structure=[24, 40]), False, "float8 in blocks of 24 x 40"),
    "float8 naive": ("naive-quantized", weights(8, **FLOAT, strategy="group", group_size=16), False, "float8 in groups of 16"),
    "nvfp4": ("nvfp4-pack-quantized", weights(4, **FLOAT, strategy="tensor_group", group_size=16), True, "NVFP4"),
    "mxfp4": ("mxfp4-pack-quantized", weights(4, **FLOAT, strategy="group", group_size=32), True, "MXFP4"),
    "mxfp6": ("mxfp6-pack-quantized", weights(6, **FLOAT, strategy="group", group_size=32), True, "MXFP6"),
    "mxfp8": ("mxfp8-quantized", weights(8, **FLOAT, strategy="group", group_size=32), False, "float8 in groups of 32"),
}  # fmt: skip
PROJECTIONS = 7  # of a layer


def projections(module: str) -> str:
    """The group of the layers' projections."""
    return "group_0" if module.endswith("_proj") else ""


def numbers(stored: Stored, root: Path) -> dict[str, torch.Tensor]:
    """What the written checkpoint is read as, of the matrices that are codes; codes are compared with it on the way."""
    opened = open_checkpoint(str(stored.write(root)))
    assert opened.unused.parts == ()
    found = {name: opened.read(name) for name in stored.twin}
    for name, read in found.items():
        rows = opened.codes(name)
        if rows is not None:
            np.testing.assert_array_equal(rows.restore(), read.numpy())
            codes, scales = rows.load()
            bound = 1 << (rows.bits - 1)
            assert codes.dtype == np.int8 and scales.dtype == np.float32
            assert -bound <= codes.min() and codes.max() < bound and scales.shape[1] * rows.group_size == codes.shape[1]
    return found


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_those_of_the_library(case: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    format_name, settings, kept, told = CASES[case]
    source = checkpoint("qwen3")
    stored = compress(source, {"group_0": group(format_name, ["Linear"], settings)}, projections, ("lm_head",))
    assert len(stored.twin) == 2 * PROJECTIONS
    for name, read in numbers(stored, tmp_path / "m").items():
        scale = stored.twin[name].abs().max()
        assert (read - stored.twin[name]).abs().max() <= 1e-6 * scale, name
    opened = open_checkpoint(str(tmp_path / "m"))
    for name in stored.twin:
        assert (opened.codes(name) is not None) == kept, name
        assert opened.tensors[name].codes == opened.tensors[name].dtype == told
        assert bool(opened.tensors[name].restored) != kept
    assert set(opened.tensors) == set(open_checkpoint(str(source)).tensors)


def test_scales_of_half_types_are_exact(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    settings = weights(4, strategy="group", group_size=32)
    stored = compress(checkpoint("qwen3"), {"group_0": group("pack-quantized", ["Linear"], settings)}, projections)
    for name in [name for name in stored.tensors if name.endswith("_scale")]:
        narrow = stored.tensors[name].to(torch.bfloat16)
        weight = f"{name.removesuffix('_scale')}"
        ratio = (narrow.float() / stored.tensors[name]).repeat_interleave(32, 1)
        stored.twin[weight] = stored.twin[weight] * ratio
        stored.tensors[name] = narrow
    for name, read in numbers(stored, tmp_path / "m").items():
        assert (read - stored.twin[name]).abs().max() <= 1e-6 * stored.twin[name].abs().max(), name


def reordered(source: Path, *, even: bool, symmetric: bool) -> Stored:
    """A checkpoint whose columns have groups of their own, which the library of today does not write any more."""
    settings = weights(4, strategy="group", group_size=16, symmetric=symmetric)
    stored = compress(source, {"group_0": group("pack-quantized", ["Linear"], settings)}, projections)
    settings["actorder"] = "group"
    for number, name in enumerate(stored.twin):
        module, k = name.removesuffix(".weight"), stored.twin[name].shape[1]
        groups = torch.arange(k, dtype=torch.int32) // 16
        torch.manual_seed(number)
        groups = groups[torch.randperm(k)]
        if not even:
            groups[groups == 1] = 0
        stored.tensors[f"{module}.weight_g_idx"] = groups
        codes = (stored.tensors[f"{module}.weight_packed"][..., None] >> torch.arange(0, 32, 4)) & 15
        codes = codes.reshape(codes.shape[0], -1).float() - 8
        if not symmetric:
            packed = stored.tensors[f"{module}.weight_zero_point"]
            zeros = (packed[:, None] >> torch.arange(0, 32, 4)[:, None]) & 15
            codes -= zeros.reshape(-1, packed.shape[1])[: len(codes), groups.long()].float() - 8
        stored.twin[name] = codes * stored.tensors[f"{module}.weight_scale"][:, groups.long()]
    return stored


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("even", [True, False])
def test_reordered_columns(even: bool, symmetric: bool, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    stored = reordered(checkpoint("qwen3"), even=even, symmetric=symmetric)
    read = numbers(stored, tmp_path / "m")
    opened = open_checkpoint(str(tmp_path / "m"))
    for name in stored.twin:
        assert torch.equal(read[name], stored.twin[name]), name
        rows, groups = opened.codes(name), stored.tensors[f"{name}_g_idx"]
        assert (rows is not None) == even and (even or "differ in size" in opened.tensors[name].restored)
        if rows is not None:
            assert rows.order is not None and torch.equal(groups[rows.order()], groups.sort().values)


@pytest.mark.parametrize("groups", ["natural", "never set"])
def test_columns_in_their_order(groups: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    stored = reordered(checkpoint("qwen3"), even=True, symmetric=True)
    for name in stored.twin:
        k = stored.twin[name].shape[1]
        natural = torch.arange(k, dtype=torch.int32) // 16
        stored.tensors[f"{name}_g_idx"] = natural if groups == "natural" else torch.full_like(natural, -1)
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    for name in stored.twin:
        rows = opened.codes(name)
        assert rows is not None and rows.order is None


def test_zeros_as_zero_points_of_symmetric_codes(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    settings = weights(8, strategy="channel")
    stored = compress(checkpoint("qwen3"), {"group_0": group("int-quantized", ["Linear"], settings)}, projections)
    for name in stored.twin:
        stored.tensors[f"{name}_zero_point"] = torch.zeros(len(stored.twin[name]), 1, dtype=torch.int8)
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    for name in stored.twin:
        rows = opened.codes(name)
        assert rows is not None and rows.zero_points is None and torch.equal(opened.read(name), stored.twin[name])
    assert not [name for name in opened.tensors if "zero_point" in name]


def test_a_lookup_and_a_head_of_codes(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    groups = {
        "words": group("pack-quantized", ["Embedding"], weights(4, strategy="group", group_size=32)),
        "products": group("int-quantized", ["Linear"], weights(8, strategy="channel")),
    }
    stored = compress(
        checkpoint("qwen3"), groups, lambda name: "words" if "embed" in name else "products" * ("norm" not in name)
    )
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    assert opened.tensors["model.embed_tokens.weight"].codes == "int4 in groups of 32"
    assert opened.tensors["lm_head.weight"].codes == "int8 with one scale a row"
    for name in stored.twin:
        assert torch.equal(opened.read(name), stored.twin[name])


def test_codes_of_experts_are_kept(tmp_path: Path) -> None:
    make_model("qwen3_moe").save_pretrained(tmp_path / "source")
    groups = {"group_0": group("pack-quantized", ["re:.*mlp.experts.*"], weights(4, strategy="group", group_size=32))}
    stored = compress(tmp_path / "source", groups, lambda name: "group_0" * (".experts." in name))
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    skeleton = build_skeleton(opened.config, attention="eager", max_context=64)
    bound = bind_parameters(opened, skeleton.model, restored="")
    parts = {name: weight.parts for name, weight in bound.items() if ".experts." in name}
    assert len(parts) == 4 and all(len(slices) == 4 for slices in parts.values())
    for name, slices in parts.items():
        prefix = name.rpartition(".")[0]
        for number, part in enumerate(slices):
            rows = part.quantized
            assert isinstance(rows, QuantizedRows)
            projections = ("gate_proj", "up_proj") if "gate_up" in name else ("down_proj",)
            expected = torch.cat([stored.twin[f"{prefix}.{number}.{each}.weight"] for each in projections])
            np.testing.assert_array_equal(rows.restore(), expected.numpy())
            np.testing.assert_array_equal(part.load()[0], expected.numpy())
