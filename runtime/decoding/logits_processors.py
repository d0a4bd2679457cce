"""Changes to logits before a token is chosen from them: bias and penalties."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.requests.random_stream import Draws
from enginewright.runtime.requests.sampling import Sampling

Ints = NDArray[np.int64]

Floats = NDArray[np.float32]


class SampledRequest(Protocol):
    """The part of a request that the sampler reads; implemented by `Generation`.

    sampling: the request's options.
    is_plain_greedy: whether its token is that of the largest logit, and nothing but tokens is asked for.
    draws: its random numbers.
    tokens[:length] int64: prompt and output.
    prompt_tokens: number of tokens in the prompt.
    generated: the output tokens.
    """

    sampling: Sampling
    is_plain_greedy: bool
    draws: Draws
    tokens: Ints
    prompt_tokens: int
    generated: list[int]

    @property
    def length(self) -> int:
        """Number of tokens, prompt and output."""
        ...


def penalise(row: Floats, request: SampledRequest) -> None:
    """Apply bias and penalties to `row` in place."""
    sampling = request.sampling
    for token, bias in sampling.logit_bias.items():
        row[token] += bias
    if sampling.repetition_penalty != 1.0:
        seen = request.tokens[: request.length]  # a token may occur twice: all values are read before any is written
        values = row[seen]
        row[seen] = np.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        tokens, counts = np.unique(request.tokens[request.prompt_tokens : request.length], return_counts=True)
        row[tokens] -= (sampling.presence_penalty + sampling.frequency_penalty * counts).astype(np.float32)
