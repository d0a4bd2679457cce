"""Depth-Attention in PyTorch, for any family of the attention hook: what engines are compared with, and trained with.

The values are mixed in front of the family's own attention. A cache would get the values before they are mixed, so the
reference runs whole sequences; the engine is what decodes with a cache.
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

from enginewright.exporters.methods.depth_attention.rule import DepthAttention, DepthMixer, Mix, Pair
from enginewright.runtime.errors import UnsupportedError

Base = Literal["eager", "sdpa"]


def mix_by_softmax(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sources: list[Pair], scale: float
) -> torch.Tensor:
    """The mixed value [B, Hkv, T, Dv] of query [B, Hq, T, D], key [B, Hkv, T, D] and value; sources likewise.

    The softmax runs over sources and self in float32, the query is the mean of its group.
    """
    keys, values = torch.stack([*(k for k, _ in sources), key]), torch.stack([*(v for _, v in sources), value])
    mean = query.reshape(key.shape[0], key.shape[1], -1, *key.shape[2:]).mean(dim=2)
    scores = (mean.float() * keys.float()).sum(-1, keepdim=True) * scale
    weights = scores.softmax(dim=0).to(value.dtype)
    return (weights * values).sum(0)


def mix_evenly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sources: list[Pair], scale: float
) -> torch.Tensor:
    """The mean of the same values: the control that training experiments need."""
    return torch.stack([*(v for _, v in sources), value]).mean(0)


def add_depth_attention(
    model: PreTrainedModel, depth: DepthAttention, *, base: Base = "eager", mix: Mix = mix_by_softmax
) -> None:
    """Make `model` mix its values over depth in front of its attention `base`; its parameters stay what they are."""
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
    """The attention function that transformers calls: query [B, Hq, T, D], key and value [B, Hkv, T, D]."""
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
    """The eager attention of a family's own module."""
    found: Callable[..., Any] = sys.modules[module].eager_attention_forward
    return found
