"""Indirect effects of attention heads: the baseline that head scores by relevance are compared with.

Source: Todd et al., arXiv 2310.15213.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from enginewright.exporters.methods.function_vectors.attention_layers import as_row, attention_layers, last_logits
from enginewright.runtime.errors import ExportError

ROWS = 32
"""The most heads that one pass tries, a row each."""


def indirect_effects(
    model: PreTrainedModel, ids: Sequence[int] | torch.Tensor, target: int, means: torch.Tensor
) -> torch.Tensor:
    """Return p_patched[target] - p[target] of every head, [L, H], at least float32.

    Each row of a pass has one head's output at the last token replaced by its mean. Tokens before the last one are the same
    in all L * H + 1 rows, so they run once, and rows have only the last token, where the model's cache gives what a whole
    pass does.

    ids: the tokens of a corrupted prompt, [S].
    means: of the heads' outputs after clean prompts, [L, H, D_h].

    Raises:
        ExportError: means of another shape.
    """
    layers = attention_layers(model)
    shape = (len(layers), layers[0].heads, layers[0].head_dim)
    if tuple(means.shape) != shape:
        raise ExportError(f"indirect_effects: means: got the shape {list(means.shape)}, expected {list(shape)}")
    row = as_row(model, ids)
    every = list(itertools.product(range(shape[0]), range(shape[1])))
    with torch.no_grad():
        last = _LastToken(model, row)
        (plain,) = last.probabilities(1, target)
        found = []
        for begin in range(0, len(every), ROWS):
            heads = every[begin : begin + ROWS]
            with ExitStack() as stack:
                for layer in layers[heads[0][0] : heads[-1][0] + 1]:
                    own = [(i, head) for i, (index, head) in enumerate(heads) if index == layer.index]
                    hook = _replaces(own, layer.head_dim, means[layer.index])
                    stack.callback(layer.projection.register_forward_pre_hook(hook).remove)
                found.append(last.probabilities(len(heads), target) - plain)
    return torch.cat(found).reshape(shape[:2])


class _LastToken:
    """The last token of a prompt in many rows, on the cache of the tokens before it."""

    def __init__(self, model: PreTrainedModel, row: torch.Tensor) -> None:
        self._model, self._row, self._cache = model, row, None
        if row.shape[1] < 2:
            return
        cache = model(input_ids=row[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        if cache is None:
            return
        self._cache = cache
        if not torch.allclose(self._logits(1), last_logits(model, row), rtol=1e-3, atol=1e-3):
            self._cache = None  # such as of a model whose values are mixed over layers

    def probabilities(self, rows: int, target: int) -> torch.Tensor:
        """Of the target after each row, [rows]."""
        logits = self._logits(rows)
        return (logits if logits.dtype == torch.float64 else logits.float()).softmax(-1)[:, target]

    def _logits(self, rows: int) -> torch.Tensor:
        if self._cache is None:
            return last_logits(self._model, self._row.expand(rows, -1))
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(rows)
        ids = self._row[:, -1:].expand(rows, -1)
        logits: torch.Tensor = self._model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        return logits[:, -1]


def _replaces(heads: Sequence[tuple[int, int]], size: int, means: torch.Tensor) -> Callable[..., Any]:
    """A hook that replaces one head's output in each of some rows; heads: (row, head)."""

    def hook(_: nn.Module, inputs: Any) -> Any:
        z = inputs[0].clone()
        for i, head in heads:
            z[i, -1, head * size : (head + 1) * size] = means[head].to(z)
        return (z, *inputs[1:])

    return hook
