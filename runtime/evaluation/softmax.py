"""Log-probabilities from logits, in float64, and blocks of rows that keep the memory for them small."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import ArtifactError

Logits = NDArray[np.float32]
Floats = NDArray[np.float64]

_BLOCK = 2**20


def blocks(logits: Logits) -> Iterator[slice]:
    """Yield spans of rows that hold about a million logits each."""
    rows = max(1, _BLOCK // logits.shape[1])
    return (slice(begin, begin + rows) for begin in range(0, len(logits), rows))


def log_softmax(logits: Logits) -> Floats:
    """Return the log-probabilities of logits [n, vocab], in the same shape.

    Raises:
        ArtifactError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ArtifactError(
            "logits: got values that are not finite, expected numbers; the engine's weights are damaged, or too large for "
            "its precision: compare it with its model by `enginewright check`"
        )
    shifted: Floats = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
