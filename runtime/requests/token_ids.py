"""Checks token ids that a caller gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import RequestError


def check_token_ids(prompt: Sequence[int], vocab: int) -> NDArray[np.int64]:
    """Return the token ids as an array, after checking that there are some, each below `vocab`, the vocabulary's size."""
    try:
        ids = np.asarray(prompt)
    except ValueError as e:
        raise RequestError(f"prompt: got lists of different lengths ({e}), expected one list of token ids") from e
    if not ids.size:
        raise RequestError("prompt: got no tokens, expected at least one; many models start with their bos token")
    if ids.dtype == object and any(isinstance(item, Mapping) for item in ids.flat):
        raise RequestError("prompt: got a message, expected text or token ids; pass conversations to LLM.chat")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise RequestError(f"prompt: got {ids.dtype} values of shape {ids.shape}, expected text or token ids")
    outside = np.flatnonzero((ids < 0) | (ids >= vocab))
    if len(outside):
        position = int(outside[0])
        raise RequestError(f"prompt: got token id {ids[position]} at position {position}, expected 0 to {vocab - 1}")
    return ids.astype(np.int64)
