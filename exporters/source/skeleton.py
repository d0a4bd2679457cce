"""Models without weights: parameters on the meta device, with the real values of the buffers kept apart.

`torch.device("meta")` alone would lose the buffers (rotary frequencies, embedding scales), which no checkpoint holds.
Here only `torch.empty`, which makes weights, goes to the meta device; everything that is computed stays real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from enginewright.runtime.errors import ExportError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model without weights; `build_skeleton` creates it.

    model: the model, with all its tensors on the meta device.
    buffers: the values of its buffers, by name.
    """

    model: PreTrainedModel
    buffers: dict[str, torch.Tensor]


def build_skeleton(config: PreTrainedConfig, *, attention: str, max_context: int) -> Skeleton:
    """Build the model that `config` describes, float32, without weights.

    attention: name of a registered attention function.
    max_context: fixes rotary embeddings whose frequencies depend on the length seen so far. One engine uses one set of
        frequencies, so that cached keys and new queries agree.

    Raises:
        ExportError: transformers cannot make a model from the config.
        UnsupportedError: a buffer's value depends on weights.
    """
    config._attn_implementation = attention
    try:
        with _EmptyOnMeta():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as e:
        raise ExportError(f"config.json: transformers cannot make a {config.model_type} model of it ({e})") from e
    model.eval()  # type: ignore[no-untyped-call]
    for module in model.modules():
        _fix_rotary(module, max_context)
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    if missing := [name for name, buffer in buffers.items() if buffer.is_meta]:
        raise UnsupportedError(f"{config.model_type}: the value of buffer {missing[0]!r} is not known without weights")
    torch.nn.Module.to(model, "meta")
    model.tie_weights()  # moving has parted the tied parameters that were not on the meta device yet, such as biases
    return Skeleton(model=model, buffers=buffers)


class _EmptyOnMeta(TorchFunctionMode):
    """Makes `torch.empty` allocate on the meta device while the context is entered."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _fix_rotary(module: torch.nn.Module, max_context: int) -> None:
    """Replace rotary frequencies that depend on the length by those for `max_context`, and stop their update in each call."""
    rope_type = getattr(module, "rope_type", None)
    if isinstance(rope_type, str) and _is_dynamic(rope_type):
        _fix_frequencies(module, rope_type, None, max_context)
        module.rope_type = "default"  # type: ignore[assignment]
    elif isinstance(rope_type, dict):
        for layer_type, kind in rope_type.items():
            if _is_dynamic(kind):
                _fix_frequencies(module, kind, layer_type, max_context)
        fixed = {name: "default" if _is_dynamic(kind) else kind for name, kind in rope_type.items()}
        module.rope_type = fixed  # type: ignore[assignment]


def _is_dynamic(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"


def _fix_frequencies(module: Any, rope_type: str, layer_type: str | None, max_context: int) -> None:
    compute: Any = ROPE_INIT_FUNCTIONS[rope_type]
    frequencies, _ = compute(module.config, torch.device("cpu"), seq_len=max_context, layer_type=layer_type)
    name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
    module.register_buffer(name, frequencies, persistent=False)
