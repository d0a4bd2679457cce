"""A decoder quantised block by block, one block of weights in memory: every layer sees what the ones before it now make."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
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
from enginewright.exporters.calibration.resume import open_progress
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import QuantizedRows, Weight
from enginewright.runtime.errors import ExportError


def calibrate(
    checkpoint: Checkpoint,
    weights: Mapping[str, Weight],
    tokens: NDArray[np.int64],
    settings: Calibration,
    quantize: Quantize,
    folder: Path,
    *,
    bits: int,
    group_size: int | None,
    key: str,
    exclude: Sequence[str] = (),
) -> dict[str, QuantizedRows]:
    """Let `quantize` choose codes and scales of the decoder's linear layers; what it chose is in files of `folder`.

    tokens[sequences, length]: text for the model. weights: of its parameters, by name. bits, group_size: the form of
    what `quantize` returns; None is one scale a row. key: names what the result depends on beside the other arguments,
    above all the weights and the quantiser; `folder` keeps it, and takes up a broken-off run only for the same one.
    exclude: patterns of parameter names, as in a shell, of linear layers that stay as they are.
    Experts stored in one tensor, and everything outside the blocks, stay as they are.

    Raises:
        ExportError: an argument does not fit the model, `folder` holds something else or cannot be written, an
            activation is not finite.
        UnsupportedError: the model's blocks cannot be run one by one.
    """
    device = settings.choose_device()
    _check_tokens(checkpoint, tokens)
    blocks = load_blocks(checkpoint, settings.max_context)
    layers = _list_layers(blocks, weights, bits, group_size, exclude)
    described = {"key": key, "bits": bits, "group_size": group_size, "exclude": list(exclude)}
    described |= _describe(settings, layers, tokens)
    with alone_in(folder):
        progress = open_progress(folder, described)
        for number, found in enumerate(layers):
            if progress.block(number).exists():
                open_block(progress.block(number), found)
        missing = [number for number in range(len(layers)) if not progress.block(number).exists()]
        if missing:
            size = max(1, settings.batch_tokens // tokens.shape[1])
            batches = tuple(torch.split(torch.from_numpy(tokens).to(device), size))
            passage = BlockWalk(
                blocks=blocks, weights=weights, settings=settings, device=device, batches=batches, layers=layers,
                progress=progress, quantize=quantize,
            )  # fmt: skip
            passage.run(missing)
        elif progress.read() is not None:  # broken off behind the last block
            progress.tidy()
            progress.note(None)
        return {
            name: rows
            for number, found in enumerate(layers)
            for name, rows in open_block(progress.block(number), found).items()
        }


def _describe(settings: Calibration, layers: list[list[QuantizedLayer]], tokens: NDArray[np.int64]) -> dict[str, Any]:
    """What a folder's results come from, beside the caller's own key."""
    return {
        "settings": dataclasses.asdict(settings),
        "layers": hashlib.sha256(repr(layers).encode()).hexdigest(),
        "tokens": hashlib.sha256(repr(tokens.shape).encode() + tokens.astype("<i8").tobytes()).hexdigest(),
    }


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
    longest = int(getattr(checkpoint.config, "max_position_embeddings", 0) or 0)
    if longest and tokens.shape[1] > longest:
        raise ExportError(
            f"calibration: tokens: got sequences of {tokens.shape[1]}, expected at most {longest}, which the model was made for"
        )


def check_layers(
    checkpoint: Checkpoint,
    weights: Mapping[str, Weight],
    *,
    bits: int,
    group_size: int | None,
    exclude: Sequence[str] = (),
) -> None:
    """Raise ExportError unless the decoder's linear layers can have the form that `calibrate` is to give them."""
    _list_layers(load_blocks(checkpoint, None), weights, bits, group_size, exclude)


def _list_layers(
    blocks: Blocks, weights: Mapping[str, Weight], bits: int, group_size: int | None, exclude: Sequence[str]
) -> list[list[QuantizedLayer]]:
    """The layers to quantise, by block, checked against the form they are to have."""
    if not 2 <= bits <= 8:
        raise ExportError(f"calibration: bits: got {bits}, expected 2 to 8")
    layers: list[list[QuantizedLayer]] = []
    for number in range(len(blocks.modules)):
        layers.append([])
        for name, linear in blocks.linears(number, exclude).items():
            parameter = blocks.parameter(number, f"{name}.weight")
            size = linear.in_features if group_size is None else group_size
            if size < 1 or linear.in_features % size:
                raise ExportError(
                    f"{parameter}: got a group size of {size}, expected a divisor of its {linear.in_features} columns"
                )
            if parameter in weights and weights[parameter].quantized is not None:
                raise ExportError(f"{parameter}: is quantised already; calibrate float weights")
            layers[-1].append(
                QuantizedLayer(
                    name=parameter, rows=linear.out_features, columns=linear.in_features, bits=bits, group_size=size
                )
            )
    if not any(layers):
        raise ExportError("calibration: got no linear layer to quantise, expected one; exclude fewer")
    return layers
