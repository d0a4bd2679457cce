"""Tests of ModelOpt's checkpoints: numbers of each algorithm from packing by hand, what is kept, named and refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.exporters.quantized_files import Change, Stored, Tensors, drop, put, read_plain

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
FILE = "hf_quant_config.json"
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def int4(n: int, k: int, group_size: int) -> tuple[Tensors, torch.Tensor]:
    """Two rows in a byte, two's complement."""
    codes, groups = torch.randint(-8, 8, (n, k)), k // group_size
    scales = torch.rand(n, groups) + 0.1
    nibbles = codes % 16
    packed = (nibbles[0::2] + 16 * nibbles[1::2]).to(torch.uint8)
    numbers = codes.float() * scales.repeat_interleave(group_size, 1)
    return {"weight": packed, "weight_scale": scales if groups > 1 else scales[:, 0]}, numbers


def int8(n: int, k: int, _: int) -> tuple[Tensors, torch.Tensor]:
    """A code in a byte."""
    codes, scales = torch.randint(-128, 128, (n, k), dtype=torch.int8), torch.rand(n) + 0.1
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales[:, None]


def float8(n: int, k: int, _: int) -> tuple[Tensors, torch.Tensor]:
    """One scale for all."""
    codes, scale = torch.randn(n, k).to(torch.float8_e4m3fn), torch.tensor(0.37)
    return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.5)}, codes.float() * scale


def nvfp4(n: int, k: int, _: int) -> tuple[Tensors, torch.Tensor]:
    """Two columns in a byte, the first one in the low nibble."""
    codes = torch.randint(0, 16, (n, k))
    scales, second = (torch.rand(n, k // 16) * 100 + 1).to(torch.float8_e4m3fn), torch.tensor(0.0123)
    packed = (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8)
    numbers = E2M1[codes] * (scales.float() * second).repeat_interleave(16, 1)
    return {"weight": packed, "weight_scale": scales, "weight_scale_2": second}, numbers


Maker = Callable[[int, int, int], tuple[Tensors, torch.Tensor]]
ALGORITHMS: dict[str, tuple[Maker, dict[str, Any], str]] = {
    "W4A16_AWQ": (int4, {"group_size": 32}, "int4 in groups of 32"),
    "W4A16": (int4, {}, "int4 with one scale a row"),
    "W8A16": (int8, {}, "int8 with one scale a row"),
    "FP8": (float8, {}, "float8 with one scale"),
    "NVFP4": (nvfp4, {"group_size": 16}, "NVFP4"),
    "NVFP4_AWQ": (nvfp4, {"group_size": 16}, "NVFP4"),
}


def quantize(source: Path, algorithm: str, *, factor: torch.Tensor | None = None, inline: bool = False) -> Stored:
    """Random codes in the place of the projections of `source`.

    factor: what the inputs are multiplied by, repeated to their number.
    inline: whether config.json has the settings, and not a file of their own.
    """
    torch.manual_seed(0)
    made, (make, settings, _) = read_plain(source), ALGORITHMS[algorithm]
    for name in [name for name in made.tensors if name.endswith("_proj.weight")]:
        n, k = made.tensors.pop(name).shape
        parts, numbers = make(n, k, settings.get("group_size", k))
        if factor is not None:
            parts["pre_quant_scale"] = factor.repeat(k // len(factor))
            numbers = numbers * parts["pre_quant_scale"].float()
        made.tensors.update({f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()})
        made.twin[name] = numbers
    found = {"quant_algo": algorithm, **settings}
    if inline:
        made.config["quantization_config"] = {"quant_method": "modelopt", **found, "ignore": ["lm_head"]}
    else:
        made.files[FILE] = {"producer": {"name": "modelopt"}, "quantization": {**found, "exclude_modules": ["lm_head"]}}
    return made


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_numbers(algorithm: str, inline: bool, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    stored = quantize(checkpoint("qwen3"), algorithm, inline=inline)
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    assert opened.format.name == "modelopt" and len(stored.twin) == 14
    for name, expected in stored.twin.items():
        read, rows = opened.read(name), opened.codes(name)
        assert (read - expected).abs().max() <= 1e-6 * expected.abs().max()
        assert (rows is None) == (algorithm == "FP8") == bool(opened.tensors[name].restored)
        if rows is not None:
            np.testing.assert_array_equal(rows.restore(), read.numpy())
        assert opened.tensors[name].codes == ALGORITHMS[algorithm][2]
    assert not [name for name in opened.tensors if not name.endswith(".weight")]
    assert [len(each.names) for each in opened.unused.parts] == ([14] if algorithm == "FP8" else [])


@pytest.mark.parametrize("algorithm", ["W4A16_AWQ", "NVFP4_AWQ", "FP8"])
def test_inputs_that_are_multiplied(algorithm: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    factor = torch.tensor([0.5, 1.25], dtype=torch.bfloat16)
    stored = quantize(checkpoint("qwen3"), algorithm, factor=factor)
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    for name, expected in stored.twin.items():
        assert (opened.read(name) - expected).abs().max() <= 1e-6 * expected.abs().max()
        reason = opened.tensors[name].restored
        assert opened.codes(name) is None and ("float8" if algorithm == "FP8" else "pre_quant_scale") in reason


def test_inputs_that_are_multiplied_by_ones(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    stored = quantize(checkpoint("qwen3"), "W4A16_AWQ", factor=torch.ones(1, dtype=torch.float16))
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    assert all(opened.codes(name) is not None for name in stored.twin)
    assert not [name for name in opened.tensors if name.endswith("pre_quant_scale")]


def test_an_algorithm_for_each_module(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    stored = quantize(checkpoint("qwen3"), "W8A16")
    parts, numbers = int4(128, 64, 16)
    stored.tensors.update({f"{Q}.{part}": tensor for part, tensor in parts.items()})
    layers = {name.removesuffix(".weight"): {"quant_algo": "W8A16"} for name in stored.twin}
    layers[Q] = {"quant_algo": "W4A16_AWQ", "group_size": 16}
    stored.files[FILE]["quantization"] = {
        "quant_algo": "MIXED_PRECISION",
        "kv_cache_quant_algo": "FP8",
        "quantized_layers": layers,
    }
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    assert torch.equal(opened.read(f"{Q}.weight"), numbers)
    assert opened.tensors[f"{Q}.weight"].codes == "int4 in groups of 16"
    assert torch.equal(opened.read(f"{DOWN}.weight"), stored.twin[f"{DOWN}.weight"])
    assert [(each.file, each.names) for each in opened.unused.parts] == [
        (FILE, ("quantization.kv_cache_quant_algo=FP8",))
    ]


def test_a_cache_alone(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    stored = read_plain(checkpoint("qwen3"))
    stored.files[FILE] = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    stored.tensors["model.layers.0.self_attn.k_proj.k_scale"] = torch.ones(1)
    opened = open_checkpoint(str(stored.write(tmp_path / "m")))
    assert [each.names for each in opened.unused.parts] == [
        ("model.layers.0.self_attn.k_proj.k_scale",),
        ("quantization.kv_cache_quant_algo=FP8",),
    ]
    assert not [name for name in opened.tensors if opened.codes(name) is not None]


def settle(**changes: Any) -> Change:
    """Changes settings."""
    return lambda stored: stored.files[FILE]["quantization"].update(changes)


REFUSED: dict[str, tuple[str, Change, str]] = {
    "another algorithm": ("W4A16", settle(quant_algo="W4A8_AWQ"), r"hf_quant_config.json: quantization: quant_algo: got 'W4A8_AWQ', expected one of W4A16_AWQ, W4A16, .*MIXED"),
    "no algorithm": ("W4A16", settle(quant_algo=None), r"got no algorithm for '[\w.]+_proj', which has a scale"),
    "zero points": ("W4A16_AWQ", settle(has_zero_point=True), r"has_zero_point: got True, expected false"),
    "mixed, without modules": ("W4A16", settle(quant_algo="MIXED_PRECISION"), r"quantized_layers: got None with MIXED_PRECISION"),
    "mixed, one is missing": ("W4A16", settle(quant_algo="MIXED_PRECISION", quantized_layers={Q: {"quant_algo": "W4A16"}}), r"got no algorithm for '[\w.]+_proj'"),
    "excluded": ("W4A16", settle(exclude_modules=["*.q_proj"]), rf"got '\*.q_proj' among the excluded modules, but '{Q}' has a scale"),
    "excluded is no list": ("W4A16", settle(exclude_modules="lm_head"), r"got excluded modules 'lm_head', expected a list"),
    "settings are no object": ("W4A16", lambda s: s.files.update({FILE: {"quantization": 3}}), r"quantization: got 3, expected settings"),
    "two files that disagree": ("W4A16", lambda s: s.config.update(quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"}), r"quant_algo: got 'W4A16', but config.json has 'FP8'"),
    "group size of NVFP4": ("NVFP4", settle(group_size=32), r"group_size: got 32 with NVFP4, expected 16"),
    "group size that is none": ("W4A16_AWQ", settle(group_size="x"), r"group_size: got 'x' with W4A16_AWQ, expected a positive number"),
    "groups that do not divide": ("W4A16_AWQ", settle(group_size=40), r"weight' got \d+ columns, expected a multiple of the group size 40"),
    "other groups": ("W4A16_AWQ", settle(group_size=16), r"weight_scale' got F32 \[64, 3\], expected F32 or F16 or BF16 \[64, 6\]"),
    "codes of another type": ("W4A16", settle(quant_algo="W8A16"), r"weight' got U8 \[\d+, \d+\], expected I8"),
    "numbers": ("W8A16", put(f"{Q}.weight", torch.zeros(128, 64)), rf"'{Q}.weight' got F32 \[128, 64\], expected I8"),
    "no scale": ("W8A16", drop(f"{Q}.weight_scale"), rf"tensor '{Q}.weight_scale' is missing"),
    "no codes": ("W8A16", drop(f"{Q}.weight"), rf"tensor '{Q}.weight' is missing"),
    "no second scale": ("NVFP4", drop(f"{Q}.weight_scale_2"), rf"tensor '{Q}.weight_scale_2' is missing"),
    "a scale for each row of FP8": ("FP8", put(f"{Q}.weight_scale", torch.ones(128)), r"weight_scale' got F32 \[128\], expected F32 or F16 or BF16 \[\]"),
    "inputs of another number": ("W4A16", put(f"{Q}.pre_quant_scale", torch.ones(63)), r"pre_quant_scale' got F32 \[63\], expected F32 or F16 or BF16 \[64\]"),
    "half groups of NVFP4": ("NVFP4", put(f"{Q}.weight", torch.zeros(128, 36, dtype=torch.uint8)), r"weight' got \[128, 36\], expected rows of whole groups of 16 codes of 4 bits"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_it_is_opened(case: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    algorithm, change, message = REFUSED[case]
    stored = quantize(checkpoint("qwen3"), algorithm)
    stored = Stored(copy.deepcopy(stored.config), stored.tensors, stored.twin, stored.files)
    change(stored)
    with pytest.raises((ExportError, UnsupportedError), match=message) as raised:
        open_checkpoint(str(stored.write(tmp_path / "m")))
    assert str(raised.value).startswith(str(tmp_path))


def test_a_scale_that_is_no_number(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    stored = quantize(checkpoint("qwen3"), "NVFP4")
    stored.tensors[f"{Q}.weight_scale_2"] = torch.tensor(torch.inf)
    rows = open_checkpoint(str(stored.write(tmp_path / "m"))).codes(f"{Q}.weight")
    assert rows is not None
    with pytest.raises(ExportError, match=rf"'{Q}.weight_scale_2' holds NaN or infinity"):
        rows.load()
