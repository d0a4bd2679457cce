"""The interface of logits processors, which change a token's logits before the token is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]

NOT_FINITE, NO_TOKEN = -1, -2
"""In place of a token: the model's logits are not finite; the processors left no token, or one of them raised."""


class LogitsProcessor(Protocol):
    """Changes the logits of one request, token by token; a ProcessorFactory creates it when the request is made.

    The runtime calls it on the step loop's thread, which waits for it. After each token that is chosen, `accept` comes
    once. Where drafts are judged, tokens may be accepted on trial and taken back by `rewind` before the next `process`.
    """

    def process(self, logits: Floats, tokens: Ints) -> None:
        """Change `logits` in place.

        logits: float32 [vocab], the model's prediction of the token after `tokens`, as earlier processors left it. A
            token that must not come gets -inf; at least one has to stay finite.
        tokens: int64 [n], the request's tokens so far: prompt, output, and drafts that are taken on trial. Read only.
        """
        ...

    def accept(self, token: int) -> None:
        """Take note that `token` follows the tokens so far."""
        ...

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens that were accepted."""
        ...


ProcessorFactory: TypeAlias = Callable[[Ints, int], LogitsProcessor]
"""Makes the processor of one request, from the prompt's tokens int64 [n] and the size of the vocabulary."""


class Stateless:
    """The part of a processor that needs no memory of its own: what it does follows from the tokens alone."""

    def accept(self, token: int) -> None:
        """Remember nothing."""

    def rewind(self, count: int) -> None:
        """Forget nothing."""
