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

from enginewright.exporters.capture.attention_mask import AttentionMask, make_mask
from enginewright.exporters.capture.cache_formats import AttentionCall, AttentionLayer, CacheFormat, Tensors
from enginewright.exporters.features.feature import ValueMixer
from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.errors import UnsupportedError

ATTENTION = "enginewright"
HARMLESS = frozenset({"dropout", "position_ids"})
"""Keywords of an attention call that change nothing in inference, or say what the mask says as well."""


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
    attention_mask: AttentionMask | torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Call the cache format's attention op, or only note the layer while its sizes are learned; returns [1, T, Hq, Dv].

    The signature is the one that transformers calls:
    query: [1, Hq, T, D].
    key: [1, Hkv, T, D].
    value: [1, Hkv, T, Dv].
    attention_mask: what `make_mask` has made.
    scaling: the factor on q . k; None: 1 / sqrt(D).
    sliding_window: the window as the layer has it; the mask's counts, as in transformers' own attention.
    softcap: the bound on logits; None: no bound.
    s_aux: the sinks [Hq].

    Raises:
        UnsupportedError: a layer attends twice in one pass, or to later tokens, or with a mask or a keyword that the op does
            not know.
    """
    trace = _current[-1]
    layer: int = module.layer_idx  # type: ignore[assignment]
    refuse_unknown(trace.config.model_type, layer, others)
    mask = read_mask(trace.config.model_type, layer, attention_mask, sliding_window)
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # undoes the model's own transpose
    check_heads(trace.config.model_type, layer, q.shape[1], k.shape[1])
    for mixer in trace.mixers:
        v = mixer(layer, q, k, v, scale)
    if trace.tables is None:
        note_layer(trace, module, AttentionLayer(
            family=trace.config.model_type,
            index=layer,
            query_heads=q.shape[1],
            kv_heads=k.shape[1],
            key_dim=k.shape[2],
            value_dim=v.shape[2],
            window=mask.window,
        ), sees_later=mask.sees_later)  # fmt: skip
        return q.new_empty(1, q.shape[0], q.shape[1], v.shape[2]), None
    cap = float(softcap or 0)
    call = AttentionCall(
        query=q, key=k, value=v, sinks=s_aux, layer=layer, scale=scale, window=mask.window, softcap=cap
    )
    output, written = trace.cache.attend(call, trace.tables, trace.pools)
    trace.written |= written
    return output[None], None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, make_mask)


def refuse_unknown(family: str, layer: int, others: dict[str, Any]) -> None:
    """Raise UnsupportedError about a keyword that may change what attention computes."""
    for name, value in others.items():
        is_set = value is not None and (value is not False or name == "is_causal")
        if is_set and name not in HARMLESS:
            raise UnsupportedError(
                f"{family}: layer {layer} passes {name} to its attention, which the attention op does not know"
            )


def check_heads(family: str, layer: int, queries: int, keys: int) -> None:
    """Raise UnsupportedError where the query heads are no multiple of the KV heads."""
    if queries % keys:
        got = f"{queries} query heads for {keys} KV heads"
        raise UnsupportedError(f"{family}: layer {layer} has {got}; expected a multiple of them")


def read_mask(family: str, layer: int, passed: object, window: int | None) -> AttentionMask:
    """The layer's mask.

    Raises:
        UnsupportedError: it is not one that `make_mask` has made, or its window is not the layer's.
    """
    if not isinstance(passed, AttentionMask):
        raise _mask_refusal(family, layer, "no mask" if passed is None else "a mask that its own code makes")
    if passed.refusal:
        raise _mask_refusal(family, layer, passed.refusal)
    if window and window != passed.window:
        raise UnsupportedError(
            f"{family}: layer {layer} has a window of {window} tokens and a mask of {passed.window or 'all'} tokens, so "
            "kernels and masks of transformers disagree about what it sees"
        )
    return passed


def _mask_refusal(family: str, layer: int, got: str) -> UnsupportedError:
    return UnsupportedError(f"{family}: layer {layer} attends with {got}; expected a causal mask or a sliding window")


def note_layer(trace: Trace, module: torch.nn.Module, found: AttentionLayer, *, sees_later: bool = False) -> None:
    """Add the cache of the layer `found` to `trace.layers`.

    sees_later: whether its mask lets tokens see later ones.

    Raises:
        UnsupportedError: the layer attends twice in one pass, or to later tokens.
    """
    if found.index in trace.layers:
        raise UnsupportedError(f"{found.family}: layer {found.index} attends twice in one pass")
    sees_later = sees_later or getattr(module, "is_causal", True) is False
    if sees_later and not trace.cache.sees_later:
        raise UnsupportedError(f"{found.family}: layer {found.index} attends to later tokens; expected a decoder")
    trace.layers[found.index] = trace.cache.describe(found)
