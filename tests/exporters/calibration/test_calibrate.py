"""Calibration against whole models: the moments of every group of layers, over the families, for every objective."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from enginewright.exporters.calibration import Calibration, LinearGroup
from enginewright.exporters.source.checkpoint import open_checkpoint
from tests.support.exporters.calibration_reference import Reference, draw_tokens, round_rows, start
from tests.support.exporters.families import FAMILIES
from tests.support.exporters.fixtures import CheckpointMaker

# Of the largest square: float32 sums in another order, after up to seven blocks.
TOLERANCE = 2e-5


@pytest.mark.parametrize("objective", ["self", "cross", "float"])
@pytest.mark.parametrize("family", FAMILIES)
def test_moments_equal_those_of_the_whole_model(
    family: str, objective: str, checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    path = checkpoint(family)
    tokens = draw_tokens(sequences=5, length=33)
    reference = Reference(path, tokens)
    seen: list[str] = []

    def quantize(group: LinearGroup) -> tuple[torch.Tensor, torch.Tensor]:
        reference.check(group, objective, TOLERANCE)
        seen.extend(group.names)
        codes, scales = round_rows(group.weights, bits=4, group_size=4)
        if objective != "float":
            reference.replace(group, codes, scales)
        return codes, scales

    settings = Calibration(objective=objective, batch_tokens=70)  # batches of 2, 2 and 1
    results = start(path, tokens, settings, quantize, tmp_path / "run", bits=4, group_size=4)
    assert sorted(seen) == sorted(reference.linears) == sorted(results)
    for name, rows in results.items():
        codes, scales = rows.load()
        expected = round_rows(torch.from_numpy(reference.floats[name].load()), bits=4, group_size=4)
        assert np.array_equal(codes, expected[0]) and np.array_equal(scales, expected[1])
    assert sorted(p.suffix for p in (tmp_path / "run").iterdir()) == [".json"] + [".safetensors"] * reference.blocks


def test_layers_that_read_the_same_are_one_group(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    groups: list[LinearGroup] = []

    def quantize(group: LinearGroup) -> tuple[torch.Tensor, torch.Tensor]:
        groups.append(group)
        return round_rows(group.weights, bits=8, group_size=None)

    tokens = draw_tokens(sequences=1, length=3)  # fewer than a schedule is found with
    settings = Calibration(objective="self")
    start(
        checkpoint("qwen3"), tokens, settings, quantize, tmp_path, bits=8, group_size=None, exclude=["*.1.*", "*.up_*"]
    )
    layer = "model.layers.0."
    assert [group.names for group in groups] == [
        tuple(f"{layer}self_attn.{name}_proj.weight" for name in "qkv"),
        (f"{layer}self_attn.o_proj.weight",),
        (f"{layer}mlp.gate_proj.weight",),
        (f"{layer}mlp.down_proj.weight",),
    ]
    assert groups[0].rows == (128, 64, 64) and groups[0].weights.shape == (256, 64)
    assert [group.tokens for group in groups] == [3] * 4


@pytest.mark.parametrize("objective", ["self", "cross"])
def test_bfloat16_is_close_to_float32(objective: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    moments: dict[str, list[torch.Tensor]] = {}
    for dtype in ("float32", "bfloat16"):
        found = moments.setdefault(dtype, [])

        def quantize(group: LinearGroup, found: list[torch.Tensor] = found) -> tuple[torch.Tensor, torch.Tensor]:
            found.append(group.hessian)
            found.extend([] if group.cross is None else [group.cross])
            return round_rows(group.weights, bits=4, group_size=32)

        settings = Calibration(objective=objective, dtype=dtype)
        start(checkpoint("qwen2"), draw_tokens(3, 40), settings, quantize, tmp_path / dtype, bits=4, group_size=32)
    assert len(moments["float32"]) == len(moments["bfloat16"]) > 0
    for exact, coarse in zip(moments["float32"], moments["bfloat16"], strict=True):
        assert coarse.dtype == torch.float32
        assert (exact - coarse).abs().max() < 0.02 * exact.abs().max()  # 8 bits of mantissa through two blocks


def test_every_family_runs_in_bfloat16(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    for family in FAMILIES:
        count = len(
            start(
                checkpoint(family),
                draw_tokens(2, 33),
                Calibration(objective="self", dtype="bfloat16"),
                lambda group: round_rows(group.weights, bits=3, group_size=None),
                tmp_path / family,
                bits=3,
                group_size=None,
            )
        )
        assert count >= 2 * open_checkpoint(str(checkpoint(family))).config.num_hidden_layers
