"""Quantises a decoder block by block, with the weights of one block in memory.

Each layer is calibrated on the outputs of the already quantised layers before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from enginewright.exporters.calibration.atomic_files import alone_in
from enginewright.exporters.calibration.block_results import QuantizedLayer, open_block
from enginewright.exporters.calibration.block_walk import BlockWalk
from enginewright.exporters.calibration.blocks import Blocks, load_blocks
from enginewright.exporters.calibration.linear_group import Calibration, Quantize
from enginewright.exporters.calibration.resume import open_resume_state
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import CodeForm, QuantizedRows, Weight
from enginewright.runtime.errors import ExportError


@dataclass(frozen=True, kw_only=True)
class QuantizedForm(CodeForm):
    """The form that a quantiser gives to linear layers, and the layers that it leaves out; the caller creates it.

    bits: 2 to 8.
    exclude: patterns of parameter names, as in a shell, of linear layers that stay as they are.
    """

    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CalibrationJob:
    """One calibration: its model and text, how it runs, what it makes, and where that is kept; the caller creates it.

    checkpoint: the model.
    weights: the model's weights by parameter name, float.
    tokens: the text, int64 [sequences, length].
    settings: how the model runs over the text.
    form: what becomes of the linear layers.
    folder: holds the results, and the state of a run that was broken off. It is used for one job alone.
    key: names everything else that the results depend on, above all the weights and the quantiser. `folder` keeps it, and
        a run that was broken off goes on only under the same key.
    """

    checkpoint: Checkpoint
    weights: Mapping[str, Weight]
    tokens: NDArray[np.int64]
    settings: Calibration
    form: QuantizedForm
    folder: Path
    key: str


def calibrate(job: CalibrationJob, quantize: Quantize) -> dict[str, QuantizedRows]:
    """Let `quantize` choose codes and scales of the decoder's linear layers; return them by parameter name.

    The results lie in files of the job's folder and are read when they are loaded. Experts that are stored in one tensor,
    and everything outside the blocks, stay as they are.

    Raises:
        ExportError: a part of the job does not fit the model, the folder holds something else or cannot be written, or an
            activation is not finite.
        UnsupportedError: the model's blocks cannot be run one by one.
    """
    device = job.settings.choose_device()
    _check_tokens(job.checkpoint, job.tokens)
    blocks = load_blocks(job.checkpoint, job.settings.max_context)
    layers = _list_layers(blocks, job.weights, job.form)
    with alone_in(job.folder):
        resume = open_resume_state(job.folder, _describe(job, layers))
        for number, found in enumerate(layers):
            if resume.block(number).exists():
                open_block(resume.block(number), found)
        missing = [number for number in range(len(layers)) if not resume.block(number).exists()]
        if missing:
            size = max(1, job.settings.batch_tokens // job.tokens.shape[1])
            walk = BlockWalk(
                blocks=blocks,
                weights=job.weights,
                settings=job.settings,
                device=device,
                batches=tuple(torch.split(torch.from_numpy(job.tokens).to(device), size)),
                layers=layers,
                resume=resume,
                quantize=quantize,
            )
            walk.run(missing)
        elif resume.read() is not None:  # broken off after the last block
            resume.tidy()
            resume.note(None)
        return {
            name: rows
            for number, found in enumerate(layers)
            for name, rows in open_block(resume.block(number), found).items()
        }


def _describe(job: CalibrationJob, layers: list[list[QuantizedLayer]]) -> dict[str, Any]:
    """The job as its folder keeps it: a folder that holds another one is refused."""
    tokens = job.tokens
    return {
        "key": job.key,
        "bits": job.form.bits,
        "group_size": job.form.group_size,
        "exclude": list(job.form.exclude),
        "settings": dataclasses.asdict(job.settings),
        "layers": hash_layers(layers),
        "tokens": hashlib.sha256(repr(tokens.shape).encode() + tokens.astype("<i8").tobytes()).hexdigest(),
    }


def hash_layers(layers: list[list[QuantizedLayer]]) -> str:
    """The digest of every block's layers; folders keep it, so the text that it is made of stays as it is."""

    def text(layer: QuantizedLayer) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(layer).items())
        return f"Layer({fields})"

    blocks = ", ".join(f"[{', '.join(map(text, block))}]" for block in layers)
    return hashlib.sha256(f"[{blocks}]".encode()).hexdigest()


def _check_tokens(checkpoint: Checkpoint, tokens: NDArray[np.int64]) -> None:
    if tokens.ndim != 2 or not tokens.size or tokens.dtype != np.int64:
        raise ExportError(
            f"calibration: tokens: got {tokens.dtype}{list(tokens.shape)}, expected int64 [sequences, length], at least one"
        )
    vocab, least, most = int(checkpoint.config.vocab_size), int(tokens.min()), int(tokens.max())
    if least < 0 or most >= vocab:
        raise ExportError(
            f"calibration: tokens: got {least if least < 0 else most}, expected 0 to {vocab - 1}; is the text tokenised "
            "for this model?"
        )
    longest = checkpoint.longest_context
    if longest and tokens.shape[1] > longest:
        raise ExportError(
            f"calibration: tokens: got sequences of {tokens.shape[1]}, expected at most {longest}, which the model was made for"
        )


def check_layers(checkpoint: Checkpoint, weights: Mapping[str, Weight], form: QuantizedForm) -> list[str]:
    """Return the names of the decoder's linear layers, once it is sure that they can have this form.

    Raises:
        ExportError: they cannot, or there are none.
    """
    layers = _list_layers(load_blocks(checkpoint, None), weights, form)
    return [layer.name for block in layers for layer in block]


def _list_layers(blocks: Blocks, weights: Mapping[str, Weight], form: QuantizedForm) -> list[list[QuantizedLayer]]:
    """The layers to quantise, by block, checked against the form that they are to have."""
    if not 2 <= form.bits <= 8:
        raise ExportError(f"calibration: bits: got {form.bits}, expected 2 to 8")
    layers: list[list[QuantizedLayer]] = []
    for number in range(len(blocks.modules)):
        layers.append([])
        for name, linear in blocks.linears(number, form.exclude).items():
            parameter = blocks.parameter(number, f"{name}.weight")
            size = linear.in_features if form.group_size is None else form.group_size
            if size < 1 or linear.in_features % size:
                raise ExportError(
                    f"{parameter}: got a group size of {size}, expected a divisor of its {linear.in_features} columns"
                )
            if parameter in weights and weights[parameter].quantized is not None:
                raise ExportError(f"{parameter}: is quantised already; calibrate float weights")
            layers[-1].append(
                QuantizedLayer(
                    name=parameter,
                    rows=linear.out_features,
                    columns=linear.in_features,
                    bits=form.bits,
                    group_size=size,
                )
            )
    if not any(layers):
        raise ExportError("calibration: got no linear layer to quantise, expected one; exclude fewer")
    return layers
