"""PiSO: quantises a decoder's linear layers to a few bits, with exact scales and error correction, calibrated on text.

It quantises the linear layers in the decoder's blocks. The embedding, the output projection, routers and fused experts are
left to `--weights`. Results are kept in a folder of their own. So a run that was interrupted goes on where it stopped, and a
second engine or checkpoint of the same calibration is made in moments.

Source: PiSO, arXiv 2606.10890; GPTQ, arXiv 2210.17323; Qronos, arXiv 2505.11695.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from enginewright.exporters.calibration.atomic_files import disk_errors, replace_file
from enginewright.exporters.calibration.calibrate import CalibrationJob, QuantizedForm, calibrate, check_layers
from enginewright.exporters.calibration.linear_group import Calibration, Compute, LinearGroup, Objective
from enginewright.exporters.calibration.texts import tokens_from_file, tokens_from_model
from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.piso.quantize_layer import quantize_layer
from enginewright.exporters.methods.piso.settings import LayerSettings
from enginewright.exporters.methods.tolerance import FINE_CODES, Tolerance
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.block_codes import block_form
from enginewright.exporters.weights.weight import CodeForm, QuantizedRows, Weight, quantized_weight
from enginewright.runtime.errors import ExportError

BITS = (2, 3, 4, 8)  # of the codes that engines and checkpoints hold
# Correction -> the objective that it minimises.
OBJECTIVES: dict[str, Objective] = {"none": "cross", "gptq": "self", "qronos": "cross"}
_NO_RESULT = ("text", "work", "device")  # options that do not change the results, or whose content is hashed instead
_FORMAT = 1  # of the folder's content; counts up when the same options come to give other results


@dataclass(frozen=True, kw_only=True)
class Config(LayerSettings):
    """The settings of layers, and of the calibration; `parse_method` creates it.

    bits: 2, 3, 4 or 8.
    group_size: a multiple of 16, or 0 for whole rows.
    objective: the models that a layer's inputs come from: self, cross or float, as in `Calibration`; auto: the correction's
        own, and cross without a correction.
    text: a file to calibrate on; empty: text that the model itself writes.
    sequences: how many sequences of the text are used.
    length: tokens of a sequence.
    seed: of the choice of windows in the text, or of the drawing of the model's own text.
    dtype: the type that the model computes in meanwhile.
    device: cpu, cuda or auto.
    exclude: names of layers to leave out, as patterns separated by +.
    work: the folder of the results; empty: one in the user's cache.

    `LayerSettings` says what the other options mean.

    Raises:
        ExportError: a value that is not known or out of range, or options that do not go together.
    """

    objective: Literal["auto", Objective] = "auto"
    text: str = ""
    sequences: int = 128
    length: int = 512
    seed: int = 0
    dtype: Compute = "float32"
    device: str = "auto"
    exclude: str = ""
    work: str = ""

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ExportError(f"piso: got bits={self.bits}, expected one of {', '.join(map(str, BITS))}")
        super().__post_init__()
        if self.group_size:
            block_form(self.bits, self.group_size, 0)  # refuses sizes that are no multiple of 16
        if self.objective not in ("auto", *get_args(Objective)):
            raise ExportError(f"piso: got objective={self.objective!r}, expected auto, self, cross or float")
        if self.correction == "gptq" and self.objective == "cross":
            raise ExportError(
                "piso: got objective=cross with correction=gptq, which knows no cross term; use qronos, or none"
            )
        if self.sequences < 1 or self.length < 1:
            raise ExportError(f"piso: got {self.sequences} sequences of {self.length} tokens, expected at least 1 of 1")
        if self.seed < 0:
            raise ExportError(f"piso: got seed={self.seed}, expected at least 0")
        self.calibration  # noqa: B018 (its own checks)

    @property
    def needs_no_text(self) -> bool:
        """Whether each layer is quantised by its weights alone, so that there is nothing to calibrate."""
        return self.correction == "none" and self.scales != "piso"

    @property
    def form(self) -> QuantizedForm:
        """The form of the results, and the layers to leave out."""
        excluded = tuple(filter(None, self.exclude.split("+")))
        return QuantizedForm(bits=self.bits, group_size=self.group_size or None, exclude=excluded)

    @property
    def calibration(self) -> Calibration:
        """The settings of the model's run over the text."""
        objective = OBJECTIVES.get(self.correction, "cross") if self.objective == "auto" else self.objective
        return Calibration(objective=objective, dtype=self.dtype, device=self.device)


def code_form(config: Config) -> CodeForm:
    """Return the bits and the groups of the results."""
    return config.form


def transform_weights(config: Config, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
    """Return `weights` with the linear layers of the blocks quantised; the results of an earlier run are used again.

    Scales that need no text, without correction, are computed when a weight is loaded, and kept nowhere.

    Raises:
        ExportError: groups that do not divide a layer, too little text, activations that are not finite, or a folder that
            holds another run.
    """
    names = check_layers(checkpoint, weights, config.form)
    if config.needs_no_text:
        if given := [name for name in ("text", "work") if getattr(config, name)]:
            print(
                f"piso: scales={config.scales} without correction need no calibration; not used: {', '.join(given)}",
                file=sys.stderr,
            )
        return {**weights, **{name: _round(config, weights[name]) for name in names}}
    key = _fingerprint(config, weights, checkpoint)
    folder = Path(config.work).expanduser() if config.work else default_folder() / key[:16]
    _tell(folder)
    tokens = _tokens(config, weights, checkpoint, folder / f"tokens-{key[:16]}.npy")
    if config.interleave == "decoupled" and config.correction != "none":
        rounding = dataclasses.replace(config, correction="none", objective=config.calibration.objective)
        first = _calibrate(rounding, weights, checkpoint, tokens, folder / "scales", key)
        rows = _calibrate(config, weights, checkpoint, tokens, folder / "codes", key, scales=first)
    else:
        rows = _calibrate(config, weights, checkpoint, tokens, folder, key)
    return {**weights, **{name: quantized_weight(weights[name].shape, found) for name, found in rows.items()}}


@functools.cache
def _tell(folder: Path) -> None:
    """Say once where the results are: a build asks for them again when it compares the engine with the model."""
    print(f"piso: results are kept in {folder}", file=sys.stderr)


def _round(config: Config, weight: Weight) -> Weight:
    """The recipe of a weight whose scales and codes depend on nothing else."""

    def load() -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        numbers = torch.from_numpy(np.ascontiguousarray(weight.load(), np.float32))
        none = torch.zeros(numbers.shape[1], numbers.shape[1])
        result = quantize_layer(numbers, none, None, config)
        return result.codes.numpy(), result.scales.numpy()

    size = config.group_size or weight.shape[1]
    return quantized_weight(weight.shape, QuantizedRows(bits=config.bits, group_size=size, load=load))


def default_folder() -> Path:
    """The folder of the results unless `work` names another."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "enginewright" / "piso"


def _calibrate(
    config: Config,
    weights: dict[str, Weight],
    checkpoint: Checkpoint,
    tokens: NDArray[np.int64],
    folder: Path,
    key: str,
    *,
    scales: dict[str, QuantizedRows] | None = None,
) -> dict[str, QuantizedRows]:
    """Run one pass over the model.

    scales: results of an earlier pass, whose scales are kept; None: scales are fitted.
    """
    quantize = functools.partial(quantize_group, config, scales or {})
    job = CalibrationJob(
        checkpoint=checkpoint,
        weights=weights,
        tokens=tokens,
        settings=config.calibration,
        form=config.form,
        folder=folder,
        key=key,
    )
    return calibrate(job, quantize)


def quantize_group(
    config: Config, scales: Mapping[str, QuantizedRows], group: LinearGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return codes and scales of layers that read the same input.

    scales: results of an earlier pass by layer, whose scales are kept; empty: scales are fitted.
    """
    if not group.tokens:
        tqdm.write(
            f"piso: {', '.join(group.names)}: no token of the calibration text came there; its scales are the best without",
            file=sys.stderr,
        )
    fixed = None
    if scales:
        fixed = torch.from_numpy(np.concatenate([scales[name].load()[1] for name in group.names]))
    result = quantize_layer(group.weights, group.hessian, group.cross, config, scales=fixed)
    return result.codes, result.scales


def _tokens(config: Config, weights: dict[str, Weight], checkpoint: Checkpoint, kept: Path) -> NDArray[np.int64]:
    """The calibration tokens [sequences, length], made once and then kept in the file `kept`."""
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
    """A hash of everything that the results depend on: options, text, the model's config, its tokenizer and every weight.

    It is the same in every command.
    """
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in _NO_RESULT}
    hashed = hashlib.sha256(json.dumps([_FORMAT, options], sort_keys=True).encode())
    texts = [Path(config.text).expanduser()] if config.text else []
    for content in [checkpoint.read_file("config.json"), *checkpoint.tokenizer_files().values()]:
        hashed.update(hashlib.sha256(content).digest())
    for path in texts:
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


def tolerance(config: Config, allowed: Tolerance) -> Tolerance:
    """Return at least that of int8: the model has the same codes, but products round their activations to 8 bits."""
    return allowed if allowed.kl > FINE_CODES.kl else FINE_CODES


METHOD = Method(
    name="piso",
    summary="linear layers in 2, 3, 4 or 8 bits, calibrated",
    paper="2606.10890",
    config=Config,
    code_form=code_form,
    transform_weights=transform_weights,
    tolerance=tolerance,
)
