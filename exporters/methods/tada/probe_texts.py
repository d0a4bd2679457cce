"""The texts of the probe, as tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginewright.exporters.calibration.texts import tokens_from_file
from enginewright.exporters.methods.tada.options import MergeOptions
from enginewright.exporters.methods.tuner import TuningData
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.tokenizer.engine_tokenizer import need_tokenizer
from enginewright.runtime.errors import ExportError

LENGTH = 512
Tokens = NDArray[np.int64]


def choose_texts(path: Path, data: TuningData, checkpoint: Checkpoint, options: MergeOptions) -> list[Tokens]:
    """Return `options.samples` texts of a file, each int64 [at most `options.length`], chosen by `options.seed`.

    A .jsonl has a text in each row, which is cut at the length; of fewer rows than samples all are taken. Of any other file
    the texts are windows of that length.

    Raises:
        ExportError: the file is missing, cannot be read, has no text or is too short, or there is no tokenizer.
    """
    length = options.length or min(LENGTH, checkpoint.longest_context or LENGTH)
    if not path.is_file():
        raise ExportError(f"--texts {path}: got no file, expected texts of the domain")
    if path.suffix != ".jsonl":
        if not path.stat().st_size:
            raise ExportError(f"--texts {path}: got an empty file, expected texts of the domain")
        return list(tokens_from_file(path, checkpoint, options.samples, length, options.seed))
    if checkpoint.longest_context and length > checkpoint.longest_context:
        raise ExportError(f"--length: got {length}, expected at most {checkpoint.longest_context}, the model's context")
    documents = data.read_texts(path)
    tokenizer = need_tokenizer(checkpoint)
    order = np.random.default_rng(options.seed).permutation(len(documents))
    chosen: list[Tokens] = []
    for number in order:
        ids = tokenizer.encode(documents[number].prompt + documents[number].text)[:length]
        if ids and len(chosen) < options.samples:
            chosen.append(np.array(ids, np.int64))
    if not chosen:
        raise ExportError(f"--texts {path}: got no text, expected texts of the domain")
    return chosen
