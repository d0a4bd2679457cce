"""Scores of attention heads by relevance: how much of a target's logit each head brings from chosen tokens of the prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.exporters.methods.function_vectors.attention_layers import as_row, attention_layers, last_logits
from enginewright.exporters.methods.function_vectors.rules import relevance_rules
from enginewright.runtime.errors import ExportError, UnsupportedError

OBSERVED = "enginewright_observed"
"""The name under which transformers finds the attention function that keeps what scores are made of."""


@dataclass(frozen=True)
class Observation:
    """What one attention layer computed; `_attend` creates it.

    output: of the heads, before their projection, [1, S, H, D_h].
    weights: of the last token's attention, [H, S], without gradient.
    values: repeated for the query heads, [H, S, D_h], without gradient; None where the family's own attention changes them.
    maps: of all tokens, [1, H, S, S]; None where they are not needed.
    """

    output: torch.Tensor
    weights: torch.Tensor
    values: torch.Tensor | None
    maps: torch.Tensor | None


class _Observer:
    """The observations of the pass that runs now; `observing` sets it up.

    attend: the family's own attention function; None: the eager one in the module of the layer.
    keeps_maps: whether maps are kept even where values are known.
    """

    def __init__(self, attend: Callable[..., Any] | None, *, keeps_maps: bool) -> None:
        self.attend = attend
        self.keeps_maps = keeps_maps
        self.found: list[Observation] = []


_current: list[_Observer] = []


def head_scores(
    model: PreTrainedModel, ids: Sequence[int] | torch.Tensor, target: int, keys: Sequence[int]
) -> torch.Tensor:
    """Return the relevance that each head draws from the tokens `keys`, [L, H], at least float32.

        R_j = A[S, j] * d logit[target] / d A[S, j] = A[S, j] * <g, v_j> / 2
        rho[l, h] = sum over j in keys of max(R_j, 0)

    S is the last token, and g the gradient at the head's output at S under the rules of `rules.py`. So one pass forward and
    one back suffice, and no attention map is kept.

    model: a decoder of transformers, in its own precision; it is left as it was.
    ids: the prompt's tokens, [S].
    target: the token whose logit after the prompt is explained.
    keys: positions in the prompt, from 0.

    Raises:
        ExportError: an empty prompt, a target outside of the vocabulary, no keys, or keys outside of the prompt.
        UnsupportedError: a family whose attention cannot be observed.
    """
    row = as_row(model, ids)
    chosen = _check_keys(keys, row.shape[1])
    size = int(model.config.get_text_config().vocab_size)
    if not 0 <= target < size:
        raise ExportError(f"head_scores: target: got {target}, expected a token from 0 to {size - 1}")
    relevance = relevance_of_keys(model, row, target)
    return relevance[:, :, chosen].clamp(min=0).sum(-1)


def relevance_of_keys(model: PreTrainedModel, row: torch.Tensor, target: int, *, by_maps: bool = False) -> torch.Tensor:
    """Return R_j of every head and token, [L, H, S], at least float32.

    row: int64 [1, S].
    by_maps: whether the gradient of the attention maps is taken, which gives the same; the memory grows with S * S.
    """
    layers = attention_layers(model)
    with relevance_rules(model), observing(model, keeps_maps=by_maps) as seen:
        logit = last_logits(model, row)[0, target]
        if len(seen) != len(layers):
            raise UnsupportedError(
                f"{model.config.model_type}: function vectors: got {len(seen)} calls of attention, expected one in each of "
                f"{len(layers)} layers; this family is not supported"
            )
        wanted = [each.output if each.maps is None else each.maps for each in seen]
        grads = torch.autograd.grad(logit, wanted, allow_unused=True)
    found = [_relevance(each, grad) for each, grad in zip(seen, grads, strict=True)]
    return torch.stack(found)


def _relevance(seen: Observation, grad: torch.Tensor | None) -> torch.Tensor:
    """R_j of one layer, [H, S]."""
    weights = _precise(seen.weights)
    if grad is None:
        return torch.zeros_like(weights)
    if seen.maps is not None:
        return weights * _precise(grad[0, :, -1])
    assert seen.values is not None
    return weights * torch.einsum("hd,hsd->hs", _precise(grad[0, -1]), _precise(seen.values)) / 2


def _precise(value: torch.Tensor) -> torch.Tensor:
    return value if value.dtype == torch.float64 else value.float()


def top_heads(scores: torch.Tensor, count: int) -> list[tuple[int, int]]:
    """Return the `count` heads of the highest scores [L, H] as (layer, head), the best first; of equals, the first in the model.

    Raises:
        ExportError: a count below 1 or above the number of heads, or scores that are not finite.
    """
    if not 1 <= count <= scores.numel():
        raise ExportError(f"top_heads: count: got {count}, expected 1 to {scores.numel()}, the heads of the model")
    if not torch.isfinite(scores).all():
        raise ExportError(
            "top_heads: scores: got values that are not finite, expected numbers; the model may be damaged"
        )
    order = torch.argsort(scores.flatten(), descending=True, stable=True)[:count].tolist()
    return [divmod(flat, scores.shape[1]) for flat in order]


def _check_keys(keys: Sequence[int], length: int) -> list[int]:
    chosen = sorted({int(key) for key in keys})
    if not length or not chosen or chosen[0] < 0 or chosen[-1] >= length:
        raise ExportError(f"head_scores: keys: got {chosen} for a prompt of {length} tokens, expected positions in it")
    return chosen


@contextmanager
def observing(model: PreTrainedModel, *, keeps_maps: bool) -> Iterator[list[Observation]]:
    """Let the model's attention keep what it computes, in the list that this yields."""
    configs = {id(config): config for each in model.modules() if (config := getattr(each, "config", None)) is not None}
    before = {key: config._attn_implementation for key, config in configs.items()}
    name = model.config.get_text_config()._attn_implementation
    observer = _Observer(_own_attention(name), keeps_maps=keeps_maps)
    _current.append(observer)
    for config in configs.values():
        config._attn_implementation = OBSERVED
    try:
        yield observer.found
    finally:
        _current.pop()
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _own_attention(name: str | None) -> Callable[..., Any] | None:
    """The attention function that a feature of ours has put into the model; None for one of transformers."""
    is_own = name is not None and name.startswith("enginewright")
    return ALL_ATTENTION_FUNCTIONS[name] if is_own else None


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **more: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call the family's eager attention, and keep what scores are made of; the signature is that of transformers.

    query: [1, H, S, D].
    key: [1, Hkv, S, D].
    value: [1, Hkv, S, D_h].
    """
    observer = _current[-1]
    attend = observer.attend or getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    output, maps = (None, None) if attend is None else attend(module, query, key, value, attention_mask, **more)
    if output is None or maps is None:
        raise UnsupportedError(
            f"function vectors: got the attention of {type(module).__name__} without weights, expected an eager kind that "
            "gives them; this family is not supported"
        )
    is_known = observer.attend is None
    observer.found.append(Observation(
        output=output,
        weights=maps[0, :, -1].detach(),
        values=value[0].detach().repeat_interleave(query.shape[1] // value.shape[1], 0) if is_known else None,
        maps=maps if observer.keeps_maps or not is_known else None,
    ))  # fmt: skip
    return output, maps


ALL_ATTENTION_FUNCTIONS.register(OBSERVED, _attend)
AttentionMaskInterface.register(OBSERVED, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
