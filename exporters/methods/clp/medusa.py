"""Converts Medusa's heads into a set that the method clp reads, with drafts of all heads in every step, for `verify=true`.

Head i (from 0) predicts the token i + 2 positions after the one whose state h it reads: softmax(W2 (h + SiLU(W1 h + b1))).
The released files are config.json, with `medusa_num_heads` and `medusa_num_layers`, and medusa_lm_head.safetensors, with
`<i>.0.linear.weight`, `<i>.0.linear.bias` and `<i>.1.weight`.

Source: Medusa, arXiv 2401.10774, section 2.1.1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from enginewright.exporters.methods.clp.head_set import (
    MOST_TOKENS,
    Backbone,
    HeadSet,
    HeadShape,
    write_head_set,
)
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.json_file import read_json
from enginewright.runtime.errors import ExportError, UnsupportedError

CONFIG, WEIGHTS = "config.json", "medusa_lm_head.safetensors"
CERTAIN = 50.0  # score of the one length that the classifier ever gives

Arrays = dict[str, NDArray[np.float32]]


def convert(root: Path, model: str, output: Path, heads: int | None = None) -> HeadSet:
    """Write a set of the first `heads` (default: all) Medusa heads at `root`, which are for the backbone `model`.

    Raises:
        ExportError: a file is missing or damaged, or the heads do not fit the model.
        UnsupportedError: a head has more than one block.
    """
    if output.exists() and any(output.iterdir()):
        raise ExportError(f"{output}: exists and is not empty; remove it, or choose another --output")
    settings = read_json(root / CONFIG, "Medusa checkpoint")
    if settings.get("medusa_num_layers", 1) != 1:
        raise UnsupportedError(f"{root}: got {settings['medusa_num_layers']} blocks in a head, expected 1")
    found = _read(root)
    made = sum(name.endswith(".1.weight") for name in found)
    count = heads or made
    if not 1 <= count <= min(made, MOST_TOKENS - 1):
        raise ExportError(f"{root}: got {made} heads, of which {count} are wanted; expected 1 to {MOST_TOKENS - 1}")
    checkpoint = open_checkpoint(model)
    hidden, vocab = int(checkpoint.config.hidden_size), int(checkpoint.config.vocab_size)
    shape = HeadShape(hidden_size=hidden, vocab_size=vocab, k=count + 1, head_hidden=hidden, classes=count + 1)
    tensors: Arrays = {
        "classifier.weight": np.zeros((shape.classes, hidden), np.float32),
        "classifier.bias": np.where(np.arange(shape.classes) == count, CERTAIN, 0).astype(np.float32),
    }
    for j in range(count):
        tensors[f"heads.{j}.up.weight"] = _take(root, found, f"{j}.0.linear.weight", (hidden, hidden))
        tensors[f"heads.{j}.up.bias"] = _take(root, found, f"{j}.0.linear.bias", (hidden,))
        tensors[f"heads.{j}.out.weight"] = _take(root, found, f"{j}.1.weight", (vocab, hidden))
        tensors[f"heads.{j}.out.bias"] = np.zeros(vocab, np.float32)
    backbone = Backbone(name=checkpoint.name, sha256=hash_of(checkpoint))
    training = {"source": "medusa"}
    result = HeadSet(shape=shape, activation="silu", residual=True, backbone=backbone, training=training)
    write_head_set(output, result, tensors)
    return result


def _read(root: Path) -> Arrays:
    path = root / WEIGHTS
    if not path.is_file():
        pickled = path.with_suffix(".pt").is_file()
        hint = f"; {path.stem}.pt is a pickle, which can run code when read: save it as safetensors" if pickled else ""
        raise ExportError(f"{path}: not found; expected Medusa's heads{hint}")
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name).float().numpy() for name in f.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as e:
        raise ExportError(f"{path}: not a whole safetensors file ({e}); download it again") from e


def _take(root: Path, found: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if name not in found or found[name].shape != shape:
        got = f"shape {list(found[name].shape)}" if name in found else "no such tensor"
        raise ExportError(
            f"{root / WEIGHTS}: {name}: got {got}, expected {list(shape)}; the heads are for another model"
        )
    if not np.isfinite(found[name]).all():
        raise ExportError(f"{root / WEIGHTS}: tensor {name!r} holds NaN or infinity")
    return found[name]
