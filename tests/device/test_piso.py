"""Tests of PiSO on torch's GPU, its sweep in chunks and its corrections, against the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginewright.exporters.methods.piso.method import Config, transform_weights
from enginewright.exporters.methods.piso.quantize_layer import LayerSettings, quantize_layer
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import build_skeleton
from tests.support.exporters.families import save_checkpoint

pytestmark = [pytest.mark.cuda, pytest.mark.native]
DEVICE = "cuda"


@pytest.mark.parametrize("group_size", [16, 0])
@pytest.mark.parametrize("correction", ["none", "gptq", "qronos"])
def test_layers(correction: Any, group_size: int) -> None:
    """Sums in another order move a code here and there, and what comes after it; the error stays what it was."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 96, generator=generator) * torch.linspace(0.2, 5, 96)
    rough = x + 0.1 * torch.randn(300, 96, generator=generator)
    weights = torch.randn(40, 96, generator=generator)
    moments = rough.T @ rough, rough.T @ x
    settings = LayerSettings(bits=3, group_size=group_size, correction=correction)
    expected = quantize_layer(weights, *moments, settings)
    got = quantize_layer(weights.to(DEVICE), *(moment.to(DEVICE) for moment in moments), settings)
    assert got.codes.device.type == DEVICE
    assert (got.codes.cpu() == expected.codes).float().mean() > 0.95
    assert got.error == pytest.approx(expected.error, rel=0.01)


@pytest.mark.parametrize("objective", ["self", "cross"])
def test_a_model(objective: Any, tmp_path: Path) -> None:
    save_checkpoint("qwen3", tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    skeleton = build_skeleton(checkpoint.config, attention="sdpa", max_context=64)
    weights = bind_parameters(checkpoint, skeleton.model)
    found = {}
    for device in ("cpu", DEVICE):
        config = Config(
            correction="none", objective=objective, device=device, work=str(tmp_path / f"{device}-{objective}"),
            sequences=4, length=24,
        )  # fmt: skip
        found[device] = transform_weights(config, weights, checkpoint)
    quantised = [name for name, weight in found["cpu"].items() if weight.quantized is not None]
    assert len(quantised) == 14
    for name in quantised:
        expected, got = found["cpu"][name].load(), found[DEVICE][name].load()
        assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected), name
