"""Computes the moments that a calibration should find, by running the whole model; and has a quantiser that only rounds."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from enginewright.exporters.calibration import (
    Calibration,
    CalibrationJob,
    LinearGroup,
    Quantize,
    QuantizedForm,
    calibrate,
)
from enginewright.exporters.calibration.blocks import load_blocks
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.weights.weight import QuantizedRows


def draw_tokens(sequences: int, length: int, vocab: int = 250) -> NDArray[np.int64]:
    """Random token ids."""
    return np.random.default_rng(0).integers(0, vocab, (sequences, length))


def round_rows(weights: torch.Tensor, *, bits: int, group_size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of weights [n, k], rounded to the nearest multiple of the largest of a group / 2^(bits - 1)."""
    groups = weights.reshape(len(weights), -1, group_size or weights.shape[1])
    scales = groups.abs().amax(-1, keepdim=True).clamp(min=1e-8) / (1 << (bits - 1))
    codes = (groups / scales).round().clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return codes.reshape(weights.shape).to(torch.int8), scales[..., 0]


def round_group(group: LinearGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """4 bits, one scale a row."""
    return round_rows(group.weights, bits=4, group_size=None)


def start(
    path: Path,
    tokens: NDArray[np.int64],
    settings: Calibration,
    quantize: Quantize,
    folder: Path,
    *,
    bits: int = 4,
    group_size: int | None = None,
    key: str = "test",
    exclude: Sequence[str] = (),
) -> dict[str, QuantizedRows]:
    """Calibrate a checkpoint."""
    checkpoint = open_checkpoint(str(path))
    weights = bind_parameters(checkpoint, load_blocks(checkpoint, None).skeleton.model)
    job = CalibrationJob(
        checkpoint=checkpoint,
        weights=weights,
        tokens=tokens,
        settings=settings,
        form=QuantizedForm(bits=bits, group_size=group_size, exclude=tuple(exclude)),
        folder=folder,
        key=key,
    )
    return calibrate(job, quantize)


class Reference:
    """Two copies of transformers' whole model: the float one, and one whose layers `replace` quantises."""

    def __init__(self, path: Path, tokens: NDArray[np.int64]) -> None:
        self._float = load_reference(str(path), ())
        self._quantized = copy.deepcopy(self._float)
        self._tokens = torch.from_numpy(tokens)
        self.floats = bind_parameters(open_checkpoint(str(path)), self._float)
        self.blocks = self._float.config.num_hidden_layers
        self.linears = [
            f"{name}.weight"
            for name, module in self._float.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        ]

    def check(self, group: LinearGroup, objective: str, tolerance: float) -> None:
        """Compare a group's moments with those of whole passes, for each of its layers."""
        assert torch.equal(group.weights, torch.cat([torch.from_numpy(self.floats[n].load()) for n in group.names]))
        for name in (group.names[0], group.names[-1]):
            quantized = _read_inputs(self._quantized, name, self._tokens)
            assert group.tokens == len(quantized)
            _assert_close(group.hessian, quantized.T @ quantized, tolerance, name)
            if objective == "cross":
                assert group.cross is not None
                exact = _read_inputs(self._float, name, self._tokens)
                _assert_close(group.cross, quantized.T @ exact, tolerance, name)
            else:
                assert group.cross is None

    def replace(self, group: LinearGroup, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Let the quantised copy use the restored weights."""
        restored = codes.reshape(*scales.shape, -1).double() * scales[..., None].double()
        parts = torch.split(restored.reshape(codes.shape).float(), list(group.rows))
        for name, part in zip(group.names, parts, strict=True):
            self._quantized.get_parameter(name).data.copy_(part)


def _read_inputs(model: torch.nn.Module, name: str, tokens: torch.Tensor) -> torch.Tensor:
    """The layer's inputs for every token, in double precision."""
    found: list[torch.Tensor] = []
    layer = model.get_submodule(name.removesuffix(".weight"))
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].double().flatten(0, -2)))
    try:
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)
    finally:
        hook.remove()
    return torch.cat(found)


def _assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str) -> None:
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert found.dtype == torch.float32 and error < tolerance, f"{name}: {error}"
