"""Function vectors: means of heads' outputs, what they add to the residual stream, and a model that is steered by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from enginewright.exporters.methods.function_vectors.attention_layers import as_row, attention_layers, last_logits
from enginewright.runtime.errors import ExportError

LayerVectors = Mapping[int, torch.Tensor]
"""Vectors [d] by the number of a layer."""


def head_outputs(model: PreTrainedModel, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Return z, the output of every head at the last token before the projection, [L, H, D_h]."""
    layers = attention_layers(model)
    found: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: Any) -> None:
        found.append(inputs[0][0, -1].detach())

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            stack.callback(layer.projection.register_forward_pre_hook(keep).remove)
        last_logits(model, as_row(model, ids))
    return torch.stack([z.reshape(layer.heads, -1) for z, layer in zip(found, layers, strict=True)])


def head_means(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the mean of `head_outputs` over prompts, [L, H, D_h].

    Raises:
        ExportError: there is no prompt.
    """
    if not prompts:
        raise ExportError("head_means: got no prompt, expected one or more")
    total = head_outputs(model, prompts[0])
    for ids in prompts[1:]:
        total = total + head_outputs(model, ids)
    return total / len(prompts)


def steering_vectors(
    model: PreTrainedModel, heads: Sequence[tuple[int, int]], means: torch.Tensor
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """Return the vectors of the chosen heads: b^l [d] of each layer that has some, and their sum [d].

        b^l = sum over the layer's heads of W_O[:, h] mean[l, h]

    Added to the output of the layer's attention projection, b^l is the same as the means added to the heads' outputs. The sum
    is for the residual stream after one layer.

    heads: (layer, head), each once.
    means: [L, H, D_h].

    Raises:
        ExportError: means of another shape or that are not finite, or a head that the model does not have.
    """
    layers = attention_layers(model)
    shape = (len(layers), layers[0].heads, layers[0].head_dim)
    if tuple(means.shape) != shape:
        raise ExportError(f"steering_vectors: means: got the shape {list(means.shape)}, expected {list(shape)}")
    if not torch.isfinite(means).all():
        raise ExportError("steering_vectors: means: got values that are not finite, expected numbers")
    if not heads or len(set(heads)) < len(heads):
        raise ExportError(f"steering_vectors: heads: got {list(heads)}, expected one or more, each once")
    if wrong := [head for head in heads if not (0 <= head[0] < shape[0] and 0 <= head[1] < shape[1])]:
        raise ExportError(
            f"steering_vectors: heads: got {wrong[0]}, expected layers below {shape[0]}, heads below {shape[1]}"
        )
    found: dict[int, torch.Tensor] = {}
    for layer, head in sorted(heads):
        weight = layers[layer].projection.weight.detach()
        part = weight[:, head * shape[2] : (head + 1) * shape[2]] @ means[layer, head].to(weight)
        found[layer] = found[layer] + part if layer in found else part
    return found, torch.stack(list(found.values())).sum(0)


@contextmanager
def steered(
    model: PreTrainedModel,
    *,
    heads: LayerVectors | None = None,
    stream: LayerVectors | None = None,
    scale: float = 1.0,
    first: int = -1,
) -> Iterator[None]:
    """Let the model add vectors, times `scale`, to the tokens of every row from `first` on; -1: to the last token of each call.

    heads: added to the output of the attention's projection, with its bias, before any norm after it.
    stream: added to the residual stream after the layer.
    """
    layers = attention_layers(model)
    with ExitStack() as stack:
        for index, vector in (heads or {}).items():
            hook = layers[index].projection.register_forward_hook(adds(vector, scale, first))
            stack.callback(hook.remove)
        for index, vector in (stream or {}).items():
            hook = layers[index].block.register_forward_hook(adds(vector, scale, first))
            stack.callback(hook.remove)
        yield


def adds(vector: torch.Tensor, scale: float, first: int, rows: slice = slice(None)) -> Callable[..., Any]:
    """Return a forward hook that adds `vector`, times `scale`, to a module's output for the tokens of `rows` from `first` on."""

    def hook(_: nn.Module, inputs: Any, output: Any) -> Any:
        states = (output[0] if isinstance(output, tuple) else output).clone()
        states[rows, first:] += (scale * vector).to(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return hook
