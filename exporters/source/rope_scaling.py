"""The scaling of rotary embeddings: the context that it gives a model, and frequencies that depend on the length.

A scaling of most kinds (linear, yarn, llama3) has one set of frequencies. `dynamic` computes another set for each length beyond
the config's, and `longrope` has one for texts of up to its original length and one for longer texts. An engine caches keys
whose rotation is done, so it has one set for every request: that of a text of its longest context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from enginewright.runtime.artifact.value_ranges import MOST_CONTEXT

_ORIGINAL = "original_max_position_embeddings"


def named_context(config: PreTrainedConfig) -> int:
    """The context that `config` names, in tokens; 0 where it names none."""
    return int(getattr(config, "max_position_embeddings", 0) or 0)


def longest_context(config: PreTrainedConfig) -> int:
    """The longest context of the model, in tokens; 0 where `config` names none.

    It is the named one, or the factor times the length before scaling where that is longer: some configs name the context
    before scaling, and some that after it. Layers with a window see no further than that, so others decide where there are
    others.
    """
    named = named_context(config)
    settings = _settings(config)
    deciding = {kind: found for kind, found in settings.items() if kind != "sliding_attention"} or settings
    return min((_scaled(found, named) for found in deciding.values()), default=named)


def fix_rotary(model: PreTrainedModel, max_context: int) -> None:
    """Replace frequencies that depend on the length by those of a text of `max_context` tokens, and stop their update."""
    for module in model.modules():
        _fix_module(module, max_context)


def describe_fixed(config: PreTrainedConfig, max_context: int) -> str:
    """Say in which texts an engine of `max_context` tokens has other frequencies than transformers; empty if in none."""
    named = named_context(config)
    for found in _settings(config).values():
        kind = str(found["rope_type"])
        limit = int(found.get(_ORIGINAL) or named) if kind == "longrope" else named
        if _is_dynamic(kind) and 0 < limit < max_context:
            shorter = f"up to {limit}" if kind == "longrope" else f"fewer than {max_context}"
            return (
                f"max_context: {max_context} tokens are more than {limit}, so the rotary frequencies ({kind}) of every request "
                f"are those of {max_context} tokens; transformers has others for texts of {shorter}. An engine with "
                f"--max-context {limit} has its frequencies for those of up to {limit}"
            )
    return ""


def _settings(config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
    """The settings of rotary embeddings by the type of layer, or under "" where all layers share them; empty without any."""
    raw: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in raw:
        return {"": raw}
    return {kind: found for kind, found in raw.items() if isinstance(found, dict) and "rope_type" in found}


def _scaled(settings: dict[str, Any], named: int) -> int:
    """The context in tokens that scaling gives, at least the named one."""
    factor = settings.get("factor")
    if settings["rope_type"] == "default" or not isinstance(factor, int | float) or not math.isfinite(factor):
        return named
    return max(named, int(min(factor * (settings.get(_ORIGINAL) or named), MOST_CONTEXT)))


def _fix_module(module: Any, max_context: int) -> None:
    rope_type = getattr(module, "rope_type", None)
    for layer_type, kind in _kinds(rope_type):
        if _is_dynamic(kind):
            frequencies, _ = ROPE_INIT_FUNCTIONS[kind](
                module.config, torch.device("cpu"), seq_len=max_context, layer_type=layer_type
            )
            name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
            module.register_buffer(name, frequencies, persistent=False)
    fixed = {layer_type: "default" if _is_dynamic(kind) else kind for layer_type, kind in _kinds(rope_type)}
    if fixed:
        module.rope_type = fixed if isinstance(rope_type, dict) else fixed[None]


def _kinds(rope_type: object) -> Iterator[tuple[str | None, str]]:
    """Pairs of a type of layer and the kind of its rotary embedding; the type is None for a module with one kind."""
    if isinstance(rope_type, str):
        yield None, rope_type
    elif isinstance(rope_type, dict):
        yield from rope_type.items()


def _is_dynamic(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"
