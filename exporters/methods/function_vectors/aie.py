"""Indirect effects of attention heads: the baseline that head scores by relevance are compared with.

Source: Todd et al., arXiv 2310.15213.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from enginewright.exporters.methods.function_vectors.attention_layers import as_row, attention_layers
from enginewright.exporters.methods.function_vectors.last_tokens import LastTokens
from enginewright.runtime.errors import ExportError

ROWS = 32
"""The most heads that one pass tries, a row each."""


def indirect_effects(
    model: PreTrainedModel, ids: Sequence[int] | torch.Tensor, target: int, means: torch.Tensor
) -> torch.Tensor:
    """Return p_patched[target] - p[target] of every head, [L, H], at least float32.

    Each row of a pass has one head's output at the last token replaced by its mean. Tokens before the last one are the same
    in all L * H + 1 rows, so they run once.

    ids: the tokens of a corrupted prompt, [S].
    means: of the heads' outputs after clean prompts, [L, H, D_h].

    Raises:
        ExportError: means of another shape.
    """
    layers = attention_layers(model)
    shape = (len(layers), layers[0].heads, layers[0].head_dim)
    if tuple(means.shape) != shape:
        raise ExportError(f"indirect_effects: means: got the shape {list(means.shape)}, expected {list(shape)}")
    every = list(itertools.product(range(shape[0]), range(shape[1])))
    with torch.no_grad():
        last = LastTokens(model, as_row(model, ids))
        (plain,) = _probabilities(last.logits(), target)
        found = []
        for begin in range(0, len(every), ROWS):
            heads = every[begin : begin + ROWS]
            with ExitStack() as stack:
                for layer in layers[heads[0][0] : heads[-1][0] + 1]:
                    own = [(i, head) for i, (index, head) in enumerate(heads) if index == layer.index]
                    hook = _replaces(own, layer.head_dim, means[layer.index])
                    stack.callback(layer.projection.register_forward_pre_hook(hook).remove)
                found.append(_probabilities(last.logits(len(heads)), target) - plain)
    return torch.cat(found).reshape(shape[:2])


def _probabilities(logits: torch.Tensor, target: int) -> torch.Tensor:
    """Of the target in each row of logits [B, V], [B]."""
    return (logits if logits.dtype == torch.float64 else logits.float()).softmax(-1)[:, target]


def _replaces(heads: Sequence[tuple[int, int]], size: int, means: torch.Tensor) -> Callable[..., Any]:
    """A hook that replaces one head's output in each of some rows; heads: (row, head)."""

    def hook(_: nn.Module, inputs: Any) -> Any:
        z = inputs[0].clone()
        for i, head in heads:
            z[i, -1, head * size : (head + 1) * size] = means[head].to(z)
        return (z, *inputs[1:])

    return hook
