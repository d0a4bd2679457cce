"""PiSO: the linear layers of a decoder as 2, 3, 4 or 8 bits, with exact scales and error correction, calibrated on text.

What is quantised: the matrices of the decoder's blocks that are linear layers; embedding, output projection, routers and
fused experts are left to `--weights`. Results are kept in a folder of their own, so that a run that was interrupted goes on
where it stopped, and a second engine or checkpoint of the same calibration takes moments.

Source: PiSO, arXiv 2606.10890; GPTQ, arXiv 2210.17323; Qronos, arXiv 2505.11695.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from enginewright.exporters.calibration.atomic_files import disk_errors, replace_file
from enginewright.exporters.calibration.calibrate import calibrate, check_layers
from enginewright.exporters.calibration.linear_group import Calibration, LinearGroup
from enginewright.exporters.calibration.texts import tokens_from_file, tokens_from_model
from enginewright.exporters.methods.piso.layer import LayerSettings, quantize_layer
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.block_codes import stored_form
from enginewright.exporters.weights.weight import QuantizedRows, Weight, quantized_weight
from enginewright.runtime.errors import ExportError

BITS = (2, 3, 4, 8)
OBJECTIVES = {"none": "cross", "gptq": "self", "qronos": "cross"}  # what each correction minimises
_NO_RESULT = ("text", "work", "device")  # options that leave the results as they are, or are known by their content
_FORMAT = 1  # of what the folder means; counts up when the same options give other results


@dataclass(frozen=True, kw_only=True)
class Config:
    """How to quantise, and on what.

    bits: 2, 3, 4 or 8. group_size: weights of a row that share a scale, a multiple of 16; 0: one scale a row.
    scales: piso; mse, the best ones without data; absmax, the largest weight's.
    correction: gptq, qronos, or none: plain rounding.
    interleave: when scales are fitted: group, as each group is reached, on what correction has made of it; layer, before a
    layer's correction; decoupled, for the whole model before any correction.
    objective: self, cross, float; auto: the correction's own, and cross without one.
    sequential: a group's scale accounts for the errors of others. diagonal: scales see H's diagonal alone. signed: scales of
    piso and mse may be negative, which a grid with one more negative code gains from. narrow: without the lowest code.
    refit: scales that are best for their codes, which then need not be the nearest.
    scale_type: float32, bfloat16 or float16: what scales are rounded to; servers of checkpoints want the model's own.
    text: a file to calibrate on; empty: what the model itself writes. sequences, length: how much of it, in tokens. seed: of the choice of pieces, and of the model's own text.
    dtype: float32 or bfloat16: what the model computes in meanwhile. device: cpu, cuda or auto.
    exclude: names of layers to leave out, as patterns separated by +. work: folder of the results; empty: in the user's cache.
    """

    bits: int = 4
    group_size: int = 32
    scales: Literal["piso", "mse", "absmax"] = "piso"
    correction: Literal["none", "gptq", "qronos"] = "gptq"
    interleave: Literal["decoupled", "layer", "group"] = "group"
    objective: Literal["auto", "self", "cross", "float"] = "auto"
    sequential: bool = True
    diagonal: bool = False
    signed: bool = True
    narrow: bool = False
    refit: bool = False
    scale_type: Literal["float32", "bfloat16", "float16"] = "float32"
    text: str = ""
    sequences: int = 128
    length: int = 512
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    exclude: str = ""
    work: str = ""

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ExportError(f"piso: got bits={self.bits}, expected one of {', '.join(map(str, BITS))}")
        if self.group_size < 0:
            raise ExportError(f"piso: got group_size={self.group_size}, expected a multiple of 16, or 0 for whole rows")
        if self.group_size:
            stored_form(self.bits, self.group_size, 0)
        if self.interleave not in ("decoupled", "layer", "group"):
            raise ExportError(f"piso: got interleave={self.interleave!r}, expected decoupled, layer or group")
        if self.objective not in ("auto", "self", "cross", "float"):
            raise ExportError(f"piso: got objective={self.objective!r}, expected auto, self, cross or float")
        if self.correction == "gptq" and self.objective == "cross":
            raise ExportError(
                "piso: got objective=cross with correction=gptq, which knows no cross term; use qronos, or none"
            )
        if self.sequences < 1 or self.length < 1:
            raise ExportError(f"piso: got {self.sequences} sequences of {self.length} tokens, expected at least 1 of 1")
        if self.seed < 0:
            raise ExportError(f"piso: got seed={self.seed}, expected at least 0")
        self.layer, self.calibration  # noqa: B018 (their own checks)

    @property
    def group(self) -> int | None:
        """Columns of a group; None: all."""
        return self.group_size or None

    @property
    def excluded(self) -> tuple[str, ...]:
        """Patterns of layers to leave out."""
        return tuple(filter(None, self.exclude.split("+")))

    @property
    def layer(self) -> LayerSettings:
        """How one layer is quantised."""
        names = {field.name for field in dataclasses.fields(LayerSettings)}
        shared = {name: value for name, value in vars(self).items() if name in names}
        interleave = "layer" if self.interleave == "decoupled" else self.interleave
        return LayerSettings(**{**shared, "group_size": self.group, "interleave": interleave})

    @property
    def calibration(self) -> Calibration:
        """How the model runs over the text."""
        objective = OBJECTIVES.get(self.correction, "cross") if self.objective == "auto" else self.objective
        return Calibration(objective=objective, dtype=self.dtype, device=self.device)  # type: ignore[arg-type]


def transform_weights(config: Config, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
    """Return `weights` with the linear layers of the blocks quantised; what an earlier run has done is not done again.

    Raises:
        ExportError: groups that do not divide a layer, too little text, activations that are not finite, or a folder of
            another run.
    """
    check_layers(checkpoint, weights, bits=config.bits, group_size=config.group, exclude=config.excluded)
    key = _fingerprint(config, weights, checkpoint)
    folder = Path(config.work).expanduser() if config.work else default_folder() / key[:16]
    print(f"piso: results are kept in {folder}", file=sys.stderr)
    tokens = _tokens(config, weights, checkpoint, folder / f"tokens-{key[:16]}.npy")
    if config.interleave == "decoupled" and config.correction != "none":
        rounding = dataclasses.replace(config, correction="none", objective=config.calibration.objective)
        first = _run(rounding, weights, checkpoint, tokens, folder / "scales", key)
        rows = _run(config, weights, checkpoint, tokens, folder / "codes", key, scales=first)
    else:
        rows = _run(config, weights, checkpoint, tokens, folder, key)
    return {**weights, **{name: quantized_weight(weights[name].shape, found) for name, found in rows.items()}}


def default_folder() -> Path:
    """Where results lie unless `work` says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "enginewright" / "piso"


def _run(
    config: Config,
    weights: dict[str, Weight],
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    folder: Path,
    key: str,
    *,
    scales: dict[str, QuantizedRows] | None = None,
) -> dict[str, QuantizedRows]:
    """One pass over the model; scales: of an earlier pass, kept as they are."""
    quantize = partial(quantize_group, config, scales or {})
    return calibrate(
        checkpoint,
        weights,
        tokens,
        config.calibration,
        quantize,
        folder,
        bits=config.bits,
        group_size=config.group,
        key=key,
        exclude=config.excluded,
    )


def quantize_group(
    config: Config, scales: Mapping[str, QuantizedRows], stage: LinearGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of layers that read the same; scales: of these layers, if they are chosen already."""
    if not stage.tokens:
        tqdm.write(
            f"piso: {', '.join(stage.names)}: no token of the calibration text came there; its scales are the best without",
            file=sys.stderr,
        )
    fixed = None
    if scales:
        fixed = torch.from_numpy(np.concatenate([scales[name].load()[1] for name in stage.names]))
    result = quantize_layer(stage.weights, stage.hessian, stage.cross, config.layer, scales=fixed)
    return result.codes, result.scales


def _tokens(config: Config, weights: dict[str, Weight], checkpoint: Checkpoint, kept: Path) -> NDArray[np.int64]:
    """The calibration text [sequences, length], made once and then kept."""
    if not kept.is_file():
        sizes = config.sequences, config.length, config.seed
        if config.text:
            tokens = tokens_from_file(Path(config.text).expanduser(), checkpoint, *sizes)
        else:
            tokens = tokens_from_model(checkpoint, weights, *sizes)
        content = io.BytesIO()
        np.save(content, tokens)
        with disk_errors(kept.parent):
            kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, content.getvalue())
    found: NDArray[np.int64] = np.load(kept)
    return found


def _fingerprint(config: Config, weights: dict[str, Weight], checkpoint: Checkpoint) -> str:
    """What the results depend on: options, text, the model's config, its tokenizer and every weight; the same in every command."""
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NO_RESULT}
    hashed = hashlib.sha256(json.dumps([_FORMAT, options], sort_keys=True).encode())
    texts = [Path(config.text).expanduser()] if config.text else []
    for path in [checkpoint.path / "config.json", *checkpoint.tokenizer_files(), *texts]:
        hashed.update(_digest(path))
    for name in sorted(weights):
        hashed.update(f"{name} {weights[name].shape}".encode())
        for part in weights[name].parts or (weights[name],):
            hashed.update(np.ascontiguousarray(part.load()).data)
    return hashed.hexdigest()


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").digest()
    except OSError as e:
        raise ExportError(f"piso: {path}: cannot be read ({e.strerror})") from e
