"""The attention function that transformers calls in place of its own, and that puts our ops into the graph.

Importing this module registers it with transformers under the name `ATTENTION`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.exporters.capture.cache_formats import AttentionCall, AttentionLayer, CacheFormat, Tensors
from enginewright.exporters.features.feature import ValueMixer
from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.errors import UnsupportedError

ATTENTION = "enginewright"


@dataclass
class Trace:
    """The state that the attention hook reads and writes during one forward pass.

    `PackedDecoder.forward` creates one to trace the graph, and `capture` one to learn the layers' sizes.

    config: of the model.
    cache: the format of the cache.
    mixers: of the attention features that the model's config asks for.
    tables: the decoder graph's tables by name; None: no graph is made, and only `layers` is filled.
    pools: the tile pools before the pass, by name.
    written: the pools after each layer's call, by name; set by `attend`.
    layers: the cache of each attention layer by its index; set by `attend` where `tables` is None.
    """

    config: PreTrainedConfig
    cache: CacheFormat
    mixers: tuple[ValueMixer, ...] = ()
    tables: Tensors | None = None
    pools: Tensors = field(default_factory=dict)
    written: Tensors = field(default_factory=dict)
    layers: dict[int, CacheLayer] = field(default_factory=dict)


_current: list[Trace] = []  # of the passes that run now, the innermost last


@contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    """Let `attend` use `trace` while the context is entered."""
    _current.append(trace)
    try:
        yield
    finally:
        _current.pop()


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Call the cache format's attention op, or only note the layer while its sizes are learned; returns [1, T, Hq, Dv].

    The signature is the one that transformers calls:
    query: [1, Hq, T, D].
    key: [1, Hkv, T, D].
    value: [1, Hkv, T, Dv].
    scaling: the factor on q . k; None: 1 / sqrt(D).
    sliding_window: tokens that a token sees, itself included; None: all.
    softcap: the bound on logits; None: no bound.
    s_aux: the sinks [Hq].

    Other keywords carry dropout and masks, which the inference of a decoder does not use.

    Raises:
        UnsupportedError: a layer attends twice in one pass, or to later tokens.
    """
    trace = _current[-1]
    layer: int = module.layer_idx  # type: ignore[assignment]
    window = _window(trace.config, layer, sliding_window)
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # undoes the model's own transpose
    for mixer in trace.mixers:
        v = mixer(layer, q, k, v, scale)
    if trace.tables is None:
        note_layer(trace, module, AttentionLayer(
            family=trace.config.model_type,
            index=layer,
            kv_heads=k.shape[1],
            key_dim=k.shape[2],
            value_dim=v.shape[2],
            window=window,
        ))  # fmt: skip
        return q.new_empty(1, q.shape[0], q.shape[1], v.shape[2]), None
    call = AttentionCall(
        query=q,
        key=k,
        value=v,
        sinks=s_aux,
        layer=layer,
        scale=scale,
        window=window,
        softcap=float(softcap or 0),
    )
    output, written = trace.cache.attend(call, trace.tables, trace.pools)
    trace.written |= written
    return output[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Make no mask: the op knows where each sequence begins."""


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)


def _window(config: PreTrainedConfig, layer: int, passed: int | None) -> int:
    """The layer's window in tokens, 0 without one; a layer that the config calls sliding has one even if it passes none."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] == "sliding_attention" and not passed:
        return int(config.sliding_window)
    return int(passed or 0)


def note_layer(trace: Trace, module: torch.nn.Module, found: AttentionLayer) -> None:
    """Add the cache of the layer `found` to `trace.layers`.

    Raises:
        UnsupportedError: the layer attends twice in one pass, or to later tokens.
    """
    if found.index in trace.layers:
        raise UnsupportedError(f"{found.family}: layer {found.index} attends twice in one pass")
    if getattr(module, "is_causal", True) is False and not trace.cache.sees_later:
        raise UnsupportedError(f"{found.family}: layer {found.index} attends to later tokens; expected a decoder")
    trace.layers[found.index] = trace.cache.describe(found)
