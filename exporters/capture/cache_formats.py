"""How the decoder graph holds keys and values: the op that a layer calls, and the buffers it works on.

A method may put another format in the place of the default one (`methods/__init__.py`); capture asks the format alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from enginewright.plugins.ops.tiles import tile_bytes
from enginewright.runtime.artifact.manifest import CacheLayer

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class AttentionLayer:
    """What capture finds of one attention layer. window: tokens a token sees, itself included; 0: all."""

    family: str
    index: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """One call of attention: query [T, Hq, D], key [T, Hkv, D] and value [T, Hkv, Dv], rotated by RoPE; sinks [Hq]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    sinks: torch.Tensor | None
    layer: int
    scale: float
    window: int
    softcap: float


class CacheFormat(Protocol):
    """A format of the cache. kind and bits, the width of an element that is not encoded, go to the manifest."""

    @property
    def kind(self) -> str: ...

    @property
    def bits(self) -> int: ...

    def describe(self, layer: AttentionLayer) -> CacheLayer:
        """What the runtime allocates for `layer`; UnsupportedError when the format cannot hold it."""
        ...

    def attend(self, call: AttentionCall, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Output [T, Hq, Dv] and the pools after the call; tables and pools by their names in the decoder graph."""
        ...


@dataclass(frozen=True)
class PagedCacheFormat:
    """Every tile holds 128 tokens as 16 or 32 bit floats: PagedAttention."""

    bits: int
    kind: str = "paged"

    def describe(self, layer: AttentionLayer) -> CacheLayer:
        """As the Protocol says."""
        size = tile_bytes(layer.key_dim, layer.value_dim, self.bits)
        return CacheLayer(
            kv_heads=layer.kv_heads,
            key_dim=layer.key_dim,
            value_dim=layer.value_dim,
            tile_bytes=size,
            window=layer.window,
        )

    def attend(self, call: AttentionCall, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """As the Protocol says."""
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
