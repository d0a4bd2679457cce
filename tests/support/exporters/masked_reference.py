"""A model's logits with a mask of their own for each layer and KV head, in transformers' eager attention."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.runtime.cache.policy import StoredRow
from enginewright.runtime.llm import LLM

Evictions = list[tuple[int, list[list[np.ndarray]]]]
"""Processed tokens at each eviction, and the positions that each layer without a window, and head, then had."""


@contextmanager
def recorded(llm: LLM) -> Iterator[Evictions]:
    """Record what row 0 evicts."""
    tables, found = llm.loop.scheduler.tables, list[Any]()
    settle = tables._settle  # type: ignore[attr-defined]

    def record(row: StoredRow, *, changed: bool) -> None:
        settle(row, changed=changed)
        if row.row == 0:
            after = tables._stored_row(0)  # type: ignore[attr-defined]
            layers, heads = after.stored.shape
            found.append((row.processed, [[after.positions(i, head) for head in range(heads)] for i in range(layers)]))

    tables._settle = record  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        del tables._settle  # type: ignore[attr-defined]


def masked_logits(
    model: PreTrainedModel,
    tokens: Sequence[int],
    evictions: Evictions,
    layers: Sequence[int],
    inner: Callable[..., Any] | None = None,
) -> np.ndarray:
    """Logits [n, vocab] of a model whose token sees what the last eviction before it left, and what came after that.

    layers: the numbers of the layers that evict.
    inner: the attention function that gets the masks; None: the family's own.
    """
    places = np.arange(len(tokens))
    hidden: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(layers):
        heads = len(evictions[0][1][index])
        seen = np.tile(places[:, None] >= places, (heads, 1, 1))
        for time, kept in evictions:
            for head in range(heads):
                gone = np.setdiff1d(np.arange(time), kept[index][head])
                seen[head, time:, gone] = False
        hidden[layer] = torch.from_numpy(np.where(seen, 0.0, -np.inf).astype(np.float32))
    eager = inner or sys.modules[type(model).__module__].eager_attention_forward  # type: ignore[attr-defined]

    def attend(layer: torch.nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, **others: Any) -> Any:
        mask = hidden.get(int(layer.layer_idx))  # type: ignore[arg-type]
        if mask is not None:
            attention_mask = mask.repeat_interleave(query.shape[1] // mask.shape[0], dim=0)[None]
        return eager(layer, query, key, value, attention_mask, **others)

    ALL_ATTENTION_FUNCTIONS.register("masked", attend)
    AttentionMaskInterface.register("masked", eager_mask)  # for the layers with windows
    model.set_attn_implementation("eager")
    model.config._attn_implementation = "masked"
    with torch.no_grad():
        return model(torch.tensor([list(tokens)]), attention_mask=None).logits[0].numpy()
