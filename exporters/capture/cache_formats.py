"""Cache formats: each names the attention op that a layer calls, and the buffers that hold its keys and values.

A method may replace the default format by its own (`choose_cache` in `methods/registry.py`). Capture asks only the format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from enginewright.plugins.ops.tiles import tile_bytes
from enginewright.runtime.artifact.manifest import CacheLayer

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    """An attention layer as capture finds it; the attention hook creates it.

    family: the model's type.
    index: of the layer.
    query_heads: heads of queries.
    kv_heads: heads of keys and values.
    key_dim: of a head's key.
    value_dim: of a head's value.
    window: tokens that a token sees, itself included; 0: all.
    """

    family: str
    index: int
    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """One call of attention; the attention hook creates it.

    query: [T, Hq, D], rotated by RoPE.
    key: [T, Hkv, D], rotated by RoPE.
    value: [T, Hkv, Dv].
    sinks: [Hq], or None.
    layer: index of the layer.
    scale: the factor on q . k.
    window: tokens that a token sees, itself included; 0: all.
    softcap: the bound on logits; 0: none.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    sinks: torch.Tensor | None
    layer: int
    scale: float
    window: int
    softcap: float


class CacheFormat(Protocol):
    """A format of the cache.

    kind: its name in the manifest.
    bits: the width of an element that is not encoded; goes to the manifest, too.
    policy: the manifest's `cache.policy`, {"kind": name, options}; empty: every token stays.
    token_inputs: further inputs [T] of the graph that the format's op reads and a decoding kind fills: name and type, as the
        manifest has them. `attend` finds them among its tables.
    sees_later: whether a layer may attend to later tokens, as those of diffusion models do.
    """

    @property
    def kind(self) -> str: ...

    @property
    def bits(self) -> int: ...

    @property
    def policy(self) -> dict[str, Any]: ...

    @property
    def token_inputs(self) -> dict[str, str]: ...

    @property
    def sees_later(self) -> bool: ...

    def describe(self, layer: AttentionLayer) -> CacheLayer:
        """Return the cache that the runtime allocates for `layer`; UnsupportedError when the format cannot hold it."""
        ...

    def attend(self, call: AttentionCall, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return the output [T, Hq, Dv] and the pools after the call.

        Tables and pools come by their names in the decoder graph.
        """
        ...


@dataclass(frozen=True)
class PagedCacheFormat:
    """The format of PagedAttention: every tile holds 128 tokens as floats of 16 or 32 bits."""

    bits: int
    kind: str = "paged"
    policy: dict[str, Any] = field(default_factory=dict)
    token_inputs: dict[str, str] = field(default_factory=dict)
    sees_later: bool = False

    def describe(self, layer: AttentionLayer) -> CacheLayer:
        """Size the tiles for keys and values of `bits` bits; every layer fits."""
        size = tile_bytes(layer.key_dim, layer.value_dim, self.bits)
        return CacheLayer(
            kv_heads=layer.kv_heads,
            key_dim=layer.key_dim,
            value_dim=layer.value_dim,
            tile_bytes=size,
            window=layer.window,
        )

    def attend(self, call: AttentionCall, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Call PagedAttention on the layer's one pool."""
        tiles = f"kv.{call.layer}.tiles"
        output, written = torch.ops.enginewright.paged_attention(
            query=call.query,
            key=call.key,
            value=call.value,
            tiles=pools[tiles],
            query_starts=tables["query_starts"],
            kv_lens=tables["kv_lens"],
            tile_table=tables["tile_table"],
            sinks=call.sinks,
            layer=call.layer,
            scale=call.scale,
            window=call.window,
            softcap=call.softcap,
            kv_bits=self.bits,
        )
        return output, {tiles: written}
