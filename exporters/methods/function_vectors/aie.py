"""Indirect effects of attention heads: the baseline that head scores by relevance are compared with.

Source: Todd et al., arXiv 2310.15213.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from enginewright.exporters.methods.function_vectors.attention_layers import (
    HeadedLayer,
    as_row,
    attention_layers,
    last_logits,
)
from enginewright.runtime.errors import ExportError

ROWS = 16
"""The most heads that one pass tries, a row each."""


def indirect_effects(
    model: PreTrainedModel, ids: Sequence[int] | torch.Tensor, target: int, means: torch.Tensor
) -> torch.Tensor:
    """Return p_patched[target] - p[target] of every head, [L, H], at least float32.

    In each pass, one head's output at the last token is replaced by its mean. It takes L * H + 1 passes of one row.

    ids: the tokens of a corrupted prompt, [S].
    means: of the heads' outputs after clean prompts, [L, H, D_h].

    Raises:
        ExportError: means of another shape.
    """
    layers = attention_layers(model)
    if tuple(means.shape) != (len(layers), layers[0].heads, layers[0].head_dim):
        raise ExportError(
            f"indirect_effects: means: got the shape {list(means.shape)}, expected "
            f"{[len(layers), layers[0].heads, layers[0].head_dim]}"
        )
    row = as_row(model, ids)
    with torch.no_grad():
        plain = _probability(model, row, target)[0]
        return torch.stack([_of_layer(model, row, target, layer, means[layer.index]) - plain for layer in layers])


def _of_layer(
    model: PreTrainedModel, row: torch.Tensor, target: int, layer: HeadedLayer, means: torch.Tensor
) -> torch.Tensor:
    """p_patched[target] of each head of one layer, [H]."""
    found = []
    for begin in range(0, layer.heads, ROWS):
        heads = range(begin, min(begin + ROWS, layer.heads))
        hook = layer.projection.register_forward_pre_hook(_replaces(heads, layer.head_dim, means))
        try:
            found.append(_probability(model, row.expand(len(heads), -1), target))
        finally:
            hook.remove()
    return torch.cat(found)


def _replaces(heads: Sequence[int], size: int, means: torch.Tensor) -> Callable[..., Any]:
    def hook(_: nn.Module, inputs: Any) -> Any:
        z = inputs[0].clone()
        for i, head in enumerate(heads):
            z[i, -1, head * size : (head + 1) * size] = means[head].to(z)
        return (z, *inputs[1:])

    return hook


def _probability(model: PreTrainedModel, rows: torch.Tensor, target: int) -> torch.Tensor:
    logits = last_logits(model, rows)
    return (logits if logits.dtype == torch.float64 else logits.float()).softmax(-1)[:, target]
