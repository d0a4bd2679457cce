"""Hashes that tell models apart, for methods whose files fit one model alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
from transformers import PreTrainedModel

from enginewright.exporters.features.registry import read_features
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.weights.weight import Weight

Change = Callable[[dict[str, Weight], Checkpoint], dict[str, Weight]]


def hash_of(checkpoint: Checkpoint) -> str:
    """The sha256 of a checkpoint's tensors: of names, types, shapes and bytes, no matter how they are cut into files.

    With Depth-Attention it includes the rule of sources, which changes every state and no tensor.
    """
    digest = hashlib.sha256()
    for feature in read_features(checkpoint.config):
        digest.update(f"{feature.describe()}\n".encode())
    for name, stored in sorted(checkpoint.tensors.items()):
        digest.update(f"{name} {stored.dtype} {list(stored.shape)}\n".encode())
        for piece in checkpoint.content(name):
            digest.update(piece)
    return digest.hexdigest()


def hash_after(checkpoint: Checkpoint, model: PreTrainedModel, changes: Iterable[Change]) -> str:
    """The sha256 of the model that methods make of a checkpoint: `hash_of`, unless they change weights.

    A method that only stores weights in fewer bits counts as none: what it makes is an approximation of the same model.

    model: of the checkpoint, for the names of its parameters; its weights are not read.
    changes: the weight transforms of the methods, in order.
    """
    digest, todo = hash_of(checkpoint), list(changes)
    if not todo:
        return digest
    before = now = bind_parameters(checkpoint, model, restored="methods change weights")
    for change in todo:
        made = change(now, checkpoint)
        if not any(weight.quantized is not None and weight is not now.get(name) for name, weight in made.items()):
            now = made
    moved = {name: weight for name, weight in now.items() if weight is not before.get(name)}
    if not moved:
        return digest
    sha = hashlib.sha256(digest.encode())
    for name, weight in sorted(moved.items()):
        sha.update(f"{name} {list(weight.shape)}\n".encode())
        sha.update(np.ascontiguousarray(weight.load(), np.float32).tobytes())
    return sha.hexdigest()
