"""Depth-Attention in PyTorch, for any family of the attention hook; models are trained with it, and engines compared with it.

The values are mixed before they enter the family's own attention. A cache would get the values before they are mixed, so the
reference runs whole sequences only; an engine decodes with a cache.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.exporters.features.depth_attention.rule import DepthAttention, DepthMixer, Mix, Pair
from enginewright.runtime.errors import UnsupportedError

Base = Literal["eager", "sdpa"]


def mix_by_softmax(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sources: list[Pair], scale: float
) -> torch.Tensor:
    """The mixed value [B, Hkv, T, Dv]: a softmax, in float32, over the values of the sources and of this layer.

    query: [B, Hq, T, D], of which the mean of each group of heads is used.
    key: [B, Hkv, T, D].
    value: [B, Hkv, T, Dv].
    sources: pairs of a key and a mixed value, of the same shapes.
    scale: the factor on q . k.
    """
    keys, values = torch.stack([*(k for k, _ in sources), key]), torch.stack([*(v for _, v in sources), value])
    mean = query.reshape(key.shape[0], key.shape[1], -1, *key.shape[2:]).mean(dim=2)
    scores = (mean.float() * keys.float()).sum(-1, keepdim=True) * scale
    weights = scores.softmax(dim=0).to(value.dtype)
    return (weights * values).sum(0)


def mix_evenly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sources: list[Pair], scale: float
) -> torch.Tensor:
    """The mean of the values that `mix_by_softmax` mixes: the control in training experiments."""
    return torch.stack([*(v for _, v in sources), value]).mean(0)


def add_depth_attention(
    model: PreTrainedModel, depth: DepthAttention, *, base: Base = "eager", mix: Mix = mix_by_softmax
) -> None:
    """Make `model` mix its values over depth before its attention function `base`; its parameters stay as they are."""
    mixer = DepthMixer(depth, mix)
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module.depth_mixer = mixer  # type: ignore[assignment]
    model.set_attn_implementation(_register(base))


@functools.cache
def _register(base: Base) -> str:
    """The name under which transformers finds attention `base` with mixing."""
    name = f"enginewright_depth_{base}"
    ALL_ATTENTION_FUNCTIONS.register(name, functools.partial(_attend, base))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _attend(
    base: Base,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mix the value, then call the attention `base`, as transformers calls an attention function.

    query: [B, Hq, T, D].
    key: [B, Hkv, T, D].
    value: [B, Hkv, T, Dv].
    """
    if key.shape[2] != query.shape[2]:
        raise UnsupportedError(
            f"depth_attention: got {query.shape[2]} tokens with a cache of {key.shape[2]}, expected whole sequences: "
            "pass use_cache=False"
        )
    layer: int = module.layer_idx  # type: ignore[assignment]
    mixer: DepthMixer = module.depth_mixer  # type: ignore[assignment]
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    mixed = mixer(layer, query, key, value, scale)
    own: Any = ALL_ATTENTION_FUNCTIONS["sdpa"] if base == "sdpa" else _eager(type(module).__module__)
    result: tuple[torch.Tensor, torch.Tensor | None] = own(
        module, query, key, mixed, attention_mask, scaling=scaling, **more
    )
    return result


def _eager(module: str) -> Callable[..., Any]:
    """The eager attention function in a family's own module."""
    found: Callable[..., Any] = sys.modules[module].eager_attention_forward
    return found
