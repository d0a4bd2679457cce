"""The attention function that shows its weights while a model reads a text, and the count of the tokens that queries need.

Importing this module registers it with transformers under the name `ATTENTION`, with the masks of the graph's attention hook:
so windows, sinks and bounds on logits are here as in an engine, and what an engine would refuse is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.exporters.capture.attention_hook import check_heads, read_mask, refuse_unknown
from enginewright.exporters.capture.attention_mask import AttentionMask, make_mask
from enginewright.runtime.errors import UnsupportedError

ATTENTION = "enginewright_counting"
ROWS = 128  # queries whose weights are in memory
TOLERANCE = 1e-6  # of a sum of weights


class Watcher(Protocol):
    """Sees the weights of one pass over a text. family: the model's type."""

    @property
    def family(self) -> str: ...

    def see(self, layer: int, begin: int, weights: torch.Tensor, sink: torch.Tensor) -> None:
        """See a layer without a window.

        begin: the position of the first query.
        weights: [Hkv, G, rows, n] of its queries; n are the tokens up to the last of them.
        sink: [Hkv, G, rows], the weight that goes to no token.
        """
        ...


@dataclass(kw_only=True)
class Counting:
    """What a pass over one text counts; `measure_demand` creates it.

    family: the model's type.
    positions: of the queries that are counted, ascending, int64 [P].
    rho: the share of the attention that tokens are to have.
    heads_first: whether the heads' weights are averaged before they are counted.
    needed: of each layer without a window by its number, int64 [Hq, P], or [1, P] with heads_first; set by `see`.
    """

    family: str
    positions: torch.Tensor
    rho: float
    heads_first: bool
    needed: dict[int, torch.Tensor] = field(default_factory=dict)

    def see(self, layer: int, begin: int, weights: torch.Tensor, sink: torch.Tensor) -> None:
        """Count what the queries at the positions need."""
        heads, end = weights.shape[0] * weights.shape[1], begin + weights.shape[2]
        shape = 1 if self.heads_first else heads, len(self.positions)
        needed = self.needed.setdefault(layer, torch.empty(shape, dtype=torch.int64))
        here = (self.positions >= begin) & (self.positions < end)
        rows = self.positions[here] - begin
        sampled, taken = weights.flatten(0, 1)[:, rows], sink.flatten(0, 1)[:, rows]
        if self.heads_first:
            sampled, taken = sampled.mean(0, keepdim=True), taken.mean(0, keepdim=True)
        needed[:, here] = count_needed(sampled, self.rho, taken)


_current: list[Watcher] = []  # of the passes that run now, the innermost last


@contextmanager
def watched(by: Watcher) -> Iterator[None]:
    """Let `attend` show its weights to `by` while the context is entered."""
    _current.append(by)
    try:
        yield
    finally:
        _current.pop()


def count_needed(weights: torch.Tensor, rho: float, reached: torch.Tensor) -> torch.Tensor:
    """Return the least number of the largest weights which, with `reached`, make up rho, at least 1, int64 [...].

    weights: [..., n], of one query's attention.
    reached: [...], the weight of a sink, which needs no token; 0 without one.
    """
    sums = weights.sort(dim=-1, descending=True).values.double().cumsum(-1)
    short = sums < (rho - TOLERANCE - reached.double())[..., None]
    return (short.sum(-1) + 1).clamp(max=weights.shape[-1])


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: AttentionMask | torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output [1, T, Hq, Dv], and show the weights to the current watcher.

    The signature is the one that transformers calls, for one text:
    query: [1, Hq, T, D].
    key: [1, Hkv, T, D].
    value: [1, Hkv, T, Dv].
    attention_mask, scaling, sliding_window, softcap, s_aux: as of the graph's attention hook.

    Raises:
        UnsupportedError: the mask or a keyword is one that the attention ops do not know.
    """
    watcher = _current[-1]
    layer: int = module.layer_idx  # type: ignore[assignment]
    refuse_unknown(watcher.family, layer, others)
    mask = read_mask(watcher.family, layer, attention_mask, sliding_window)
    check_heads(watcher.family, layer, query.shape[1], key.shape[1])
    if mask.sees_later:
        raise UnsupportedError(f"{watcher.family}: layer {layer} attends to later tokens; expected a decoder")
    heads, length = query.shape[1], query.shape[2]
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    q = query[0].reshape(key.shape[1], -1, length, query.shape[-1]).float()  # [Hkv, G, T, D]
    k, v = key[0, :, None].float(), value[0, :, None].float()
    output = q.new_empty(length, heads, v.shape[-1])
    for begin in range(0, length, ROWS):
        end = min(begin + ROWS, length)
        logits = q[:, :, begin:end] @ k[:, :, :end].mT * scale
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        weights, sink = _softmax(_hide(logits, begin, mask.window), s_aux)
        output[begin:end] = (weights @ v[:, :, :end]).flatten(0, 1).transpose(0, 1)
        if not mask.window:
            watcher.see(layer, begin, weights, sink)
    return output[None].to(query.dtype), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, make_mask)


def _hide(logits: torch.Tensor, begin: int, window: int) -> torch.Tensor:
    """The logits [..., rows, n] with -inf at tokens that the queries from `begin` on do not see."""
    query = begin + torch.arange(logits.shape[-2])[:, None]
    token = torch.arange(logits.shape[-1])
    seen = token <= query
    if window:
        seen &= token > query - window
    return logits.masked_fill(~seen, -torch.inf)


def _softmax(logits: torch.Tensor, sinks: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of tokens [Hkv, G, rows, n], and of the sink [Hkv, G, rows]; sinks: [Hq] or none."""
    if sinks is None:
        return logits.softmax(-1), logits.new_zeros(logits.shape[:-1])
    column = sinks.float().reshape(*logits.shape[:2], 1, 1).expand(*logits.shape[:-1], 1)
    weights = torch.cat([logits, column], dim=-1).softmax(-1)
    return weights[..., :-1], weights[..., -1]
