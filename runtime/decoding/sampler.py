"""Chooses the next token of each row from the row's logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.decoding.cutoffs import CUTOFFS
from enginewright.runtime.requests.completion import Logprobs
from enginewright.runtime.requests.logits_processor import NO_TOKEN, Floats, Ints, LogitsProcessor
from enginewright.runtime.requests.random_stream import Draws
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling

_BLOCK = 64
_FEW = 1024
_COLDEST = 1e-6


class SampledRequest(Protocol):
    """The part of a request that the sampler reads; implemented by `Generation`.

    sampling: the request's options.
    is_plain_greedy: whether its token is that of the largest logit, and nothing but tokens is asked for.
    draws: its random numbers.
    tokens[:length] int64: prompt and output.
    generated: the output tokens.
    processors: what changes its logits before a token is chosen.
    processor_error: what a processor raised; set by the sampler.
    """

    sampling: ResolvedSampling
    is_plain_greedy: bool
    draws: Draws
    tokens: Ints
    generated: list[int]
    processors: Sequence[LogitsProcessor]
    processor_error: BaseException | None

    @property
    def length(self) -> int:
        """Number of tokens, prompt and output."""
        ...


def choose_tokens(outputs: Outputs, requests: Sequence[SampledRequest]) -> tuple[Ints, list[Logprobs | None]]:
    """Return the next token of each row, and its log-probabilities where the request asks for them.

    Overwrites the logits. A row that gives no token has NOT_FINITE or NO_TOKEN.
    """
    tokens = outputs.greedy.copy()
    logprobs: list[Logprobs | None] = [None] * len(requests)
    for i, request in enumerate(requests):
        if not request.is_plain_greedy:
            tokens[i], logprobs[i] = choose_token(outputs.logits[i], int(tokens[i]), request)
    return tokens, logprobs


def choose_token(row: Floats, greedy: int, request: SampledRequest) -> tuple[int, Logprobs | None]:
    """Return the request's next token, and its log-probabilities where it asks for them; overwrites the logits `row`.

    greedy: the index of the largest logit, the lowest one among equals; NOT_FINITE where the logits are not finite.
    """
    if greedy >= len(row):  # the graph's mistake, which the request will name
        return greedy, None
    sampling, token, raw = request.sampling, greedy, row
    if request.processors and greedy >= 0:
        raw = row.copy()
        token = _process(row, request, request.tokens[: request.length])
    if sampling.temperature > 0 and token >= 0:
        token = _draw(row, sampling, request.draws[len(request.generated)])
    if token >= 0 and request.processors:
        token = _accept(token, request)
    if token < 0:
        return token, None
    return token, None if sampling.logprobs is None else _logprobs_of(raw, token, sampling.logprobs)


def judge_drafts(rows: Floats, greedy: Sequence[int], drafts: Sequence[int], request: SampledRequest) -> list[int]:
    """Return the tokens that the request gets: the drafts up to the first that it would not choose, then its own choice.

    It is for requests without temperature. Overwrites the logits.

    rows: float32 [n + 1, vocab], the predictions of the n drafts and of the token after them.
    greedy[n + 1]: the index of the largest logit of each row.
    """
    known, chosen = request.length, list[int]()
    tokens = np.concatenate([request.tokens[:known], np.asarray(drafts, np.int64)])
    for i, row in enumerate(rows):
        token = greedy[i]
        if request.processors and token >= 0:
            token = _process(row, request, tokens[: known + i])
        if token >= 0:
            token = _accept(token, request)
        chosen.append(token)
        if i == len(drafts) or token != drafts[i]:
            break
    return chosen


def _process(row: Floats, request: SampledRequest, tokens: Ints) -> int:
    """Let the processors change `row`; return the token of its largest logit, NO_TOKEN where none is finite."""
    tokens.flags.writeable = False  # `tokens` is a view of the scheduler's table, whose other views stay as they are
    try:
        for processor in request.processors:
            processor.process(row, tokens)
    except BaseException as error:  # of any kind: the processor may be the user's own, and other requests must go on
        request.processor_error = error
        return NO_TOKEN
    token = _largest(row)
    return NO_TOKEN if token < 0 else token


def _accept(token: int, request: SampledRequest) -> int:
    """Tell the processors of `token`, and return it; NO_TOKEN where one of them raises."""
    try:
        for processor in request.processors:
            processor.accept(token)
    except BaseException as error:  # of any kind, as in `_process`
        request.processor_error = error
        return NO_TOKEN
    return token


def _largest(row: Floats) -> int:
    """Return the most probable token, the lowest id among equals; -1 where its logit is not finite."""
    token = int(row.argmax())
    return token if math.isfinite(row[token]) else -1


def _draw(row: Floats, sampling: ResolvedSampling, uniform: float) -> int:
    """Return the token at which the cumulated probabilities reach `uniform`, in order of ids; -1 where a logit is NaN.

    Only the tokens that the truncations leave count. Each truncation is a lowest logit or weight, found without sorting
    the vocabulary; tokens that equal it stay.
    """
    top = row.max()
    if np.isnan(top):
        return -1
    ids = np.flatnonzero(row >= _kth_largest(row, sampling.top_k)) if sampling.top_k else None
    values = row if ids is None else row[ids]
    weights: Floats = np.exp((values - top) / np.float32(max(sampling.temperature, _COLDEST)))
    cut = max(_mass_cut(weights, sampling.top_p) if sampling.top_p < 1.0 else 0.0, sampling.min_p)
    if cut > 0:
        kept = np.flatnonzero(weights >= np.float32(cut))
        weights, ids = weights[kept], kept if ids is None else ids[kept]
    for name, value in sampling.cutoffs:
        kept = np.flatnonzero(CUTOFFS[name](weights, value))
        weights, ids = weights[kept], kept if ids is None else ids[kept]
    index = _pick(weights, uniform)
    return index if ids is None else int(ids[index])


def _pick(weights: Floats, uniform: float) -> int:
    """Return the index at which the cumulated weights reach `uniform` of their sum: first the block, then its element."""
    edges = np.arange(0, len(weights), _BLOCK)
    cumulated = np.cumsum(np.add.reduceat(weights, edges), dtype=np.float64)
    target = uniform * cumulated[-1]
    block = int(np.searchsorted(cumulated[:-1], target, side="right"))
    before = cumulated[block - 1] if block else 0.0
    inside = before + np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    index = block * _BLOCK + int(np.searchsorted(inside[:-1], target, side="right"))
    if weights[index] > 0:
        return index
    # the block's sum in single precision is above that in double, and the target lies between: the last token that counts
    return int(np.flatnonzero(weights[:index])[-1])


def _mass_cut(weights: Floats, share: float) -> float:
    """Return the least of the largest weights that together reach `share` of the sum; the largest weight is 1.

    Narrows the range in which that weight lies by halving it on a logarithmic scale, then sorts the few weights left.
    """
    target = share * float(weights.sum())
    low, high, above = (1.0 - share) * float(weights.sum()) / len(weights), 1.0, 0.0
    around = weights[weights >= np.float32(low)]  # together, the others weigh less than 1 - share
    while len(around) > _FEW and high > low * 1.001:
        middle = float(np.sqrt(low * high))
        upper = around[around >= np.float32(middle)]
        mass = float(upper.sum())
        if above + mass >= target:
            around, low = upper, middle
        else:
            around, high, above = around[around < np.float32(middle)], middle, above + mass
    descending = np.sort(around)[::-1]
    reached = int(np.searchsorted(above + np.cumsum(descending, dtype=np.float64), target))
    return float(descending[min(reached, len(descending) - 1)]) if len(descending) else low


def _kth_largest(row: Floats, k: int) -> float:
    """Return the k-th largest value.

    With k or more blocks, it is no smaller than the k-th largest of the blocks' maxima, so smaller values are left out.
    """
    if k >= len(row):
        return -np.inf
    blocks = len(row) // _BLOCK
    if k <= blocks:
        maxima = row[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(axis=1)
        row = row[row >= np.partition(maxima, blocks - k)[blocks - k]]
    return float(np.partition(row, len(row) - k)[len(row) - k])


def _logprobs_of(row: Floats, token: int, top: int) -> Logprobs:
    """Return the log-softmax of `row` at `token` and at the `top` largest values."""
    largest = float(row.max())
    total = largest + float(np.log(np.exp(row - np.float32(largest)).sum()))
    pairs: list[tuple[int, float]] = []
    if top:
        ids = np.flatnonzero(row >= _kth_largest(row, top))
        ids = ids[np.argsort(-row[ids], kind="stable")][:top]
        pairs = [(i, float(row[i]) - total) for i in ids.tolist()]
    return Logprobs(float(row[token]) - total, tuple(pairs))
