"""Random sets of heads for the tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from enginewright.exporters.methods.clp.head_set import Backbone, HeadSet, HeadShape, write_head_set
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.source.checkpoint import open_checkpoint

Edit = Callable[[dict[str, np.ndarray]], None]


def random_set(
    model: Path,
    root: Path,
    *,
    k: int = 3,
    classes: int | None = None,
    head_hidden: int | None = None,
    edit: Edit | None = None,
    **changes: Any,
) -> Path:
    """Write heads of ordinary size for the checkpoint at `model`; edit changes tensors in place, changes the config."""
    checkpoint = open_checkpoint(str(model))
    hidden = int(checkpoint.config.hidden_size)
    shape = HeadShape(
        hidden_size=hidden,
        vocab_size=int(checkpoint.config.vocab_size),
        k=k,
        head_hidden=head_hidden or (hidden if changes.get("residual") else hidden // 2),
        classes=classes or k,
    )
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(size).astype(np.float32) for name, size in shape.tensors().items()}
    if edit is not None:
        edit(tensors)
    backbone = Backbone(name=checkpoint.name, sha256=hash_of(checkpoint))
    write_head_set(root, HeadSet(**{"shape": shape, "backbone": backbone, **changes}), tensors)
    return root
