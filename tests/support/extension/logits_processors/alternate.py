"""A sample logits processor: every second token of the output has to be one of a few. It keeps count of the tokens itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from enginewright.runtime.decoding.processor_kind import ProcessorKind
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.logits_processor import Floats, Ints, LogitsProcessor


class Alternate:
    """Rules out all but `allowed` for every second token."""

    def __init__(self, allowed: list[int]) -> None:
        self._allowed = np.array(allowed, np.int64)
        self._count = 0

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Change the logits of every second token."""
        if self._count % 2:
            kept = logits[self._allowed]
            logits[:] = -np.inf
            logits[self._allowed] = kept

    def accept(self, token: int) -> None:
        """Count the token."""
        self._count += 1

    def rewind(self, count: int) -> None:
        """Count the tokens no more."""
        self._count -= count


def _open(options: Mapping[str, Any], prompt: Ints, vocab: int) -> LogitsProcessor:
    if options.keys() != {"allowed"}:
        raise RequestError(f"alternate: got the options {sorted(options)}, expected allowed alone, a list of token ids")
    return Alternate(options["allowed"])


PROCESSOR = ProcessorKind(name="alternate", from_options=_open)
