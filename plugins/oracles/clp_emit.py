"""The numpy definition of ClpEmit, which `plugins/ops/clp_emit.py` declares.

Source: Collocation-Length Prediction, arXiv 2606.10935, equations 2 to 5 and algorithm 1: a classifier on the state of a
token decides how many of the extra heads' tokens follow the model's own, and only those heads are evaluated.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.oracles.greedy_sample import greedy_sample

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
GELU, SILU = 0, 1
NOTHING = -1
"""The token of a column that a row does not emit."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def clp_emit(
    hidden: Floats,
    greedy: Ints,
    classifier_weight: Floats,
    classifier_bias: Floats,
    up_weight: Floats,
    up_bias: Floats,
    out_bias: Floats,
    out_weight: Floats | None = None,
    out_codes: NDArray[np.int8] | None = None,
    out_scales: Floats | None = None,
    sample_rows: Ints | None = None,
    query_starts: NDArray[np.int32] | None = None,
    *,
    k: int,
    tau: float,
    activation: int = GELU,
    residual: int = 0,
) -> tuple[Ints, Ints]:
    """Tokens [N, k] and the number of tokens that each row emits [N].

    `plugins/ops/clp_emit.py` declares the arguments' shapes and meaning.
    """
    tokens = np.full((len(hidden), k), NOTHING, np.int64)
    tokens[:, 0] = greedy
    lengths = extra_lengths(hidden, classifier_weight, classifier_bias, tau=tau, most=k - 1)
    lengths[greedy < 0] = 0  # the model itself has no token here
    if sample_rows is not None and query_starts is not None:
        lengths[~np.isin(sample_rows + 1, query_starts[1:])] = 0
    for row, length in enumerate(lengths):
        for head in range(length):
            state = hidden[row].astype(np.float64)
            out = out_weight[head] if out_weight is not None else _restore(out_codes, out_scales, head)
            z = head_state(state, up_weight[head], up_bias[head], activation=activation, residual=bool(residual))
            (token,) = greedy_sample((out @ z + out_bias[head])[None])
            if token < 0:
                lengths[row] = head
                break
            tokens[row, 1 + head] = token
    return tokens, 1 + lengths


def extra_lengths(hidden: Floats, weight: Floats, bias: Floats, *, tau: float, most: int) -> Ints:
    """L [N]: the most likely class of each row, the lowest among equals, at most `most`.

    L is 0 if the class has a probability below tau, or if the row's scores are not finite.
    hidden[N, d], weight[classes, d], bias[classes].
    """
    scores = hidden.astype(np.float64) @ weight.T.astype(np.float64) + bias
    finite = np.isfinite(scores).all(axis=1)
    scores[~finite] = 0
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    probability = odds.max(axis=1) / odds.sum(axis=1)
    lengths: Ints = np.minimum(odds.argmax(axis=1), most).astype(np.int64)
    lengths[(probability < tau) | ~finite] = 0
    return lengths


def head_state(state: Floats, up: Floats, bias: Floats, *, activation: int = GELU, residual: bool = False) -> Floats:
    """The hidden layer z [h] of a head: act(up @ state + bias), plus state if `residual`.

    The head's logits are out @ z + out_bias.
    """
    x = up @ state + bias
    acted: Floats = x / (1 + np.exp(-x)) if activation == SILU else 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    return acted + state if residual else acted


def _restore(codes: NDArray[np.int8] | None, scales: Floats | None, head: int) -> Floats:
    assert codes is not None and scales is not None
    restored: Floats = codes[head].astype(np.float64) * scales[head].astype(np.float64)[:, None]
    return restored
