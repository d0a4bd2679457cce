"""How the decoder graph holds keys and values: the op that a layer calls, and the buffers it works on.

A method may put another format in the place of the default one (`methods/__init__.py`); capture asks the format alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from enginewright.plugins.ops import KVARN_ATTENTION, TILE_TOKENS, kvarn_exact_bytes, kvarn_tile_bytes, tile_bytes
from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.errors import UnsupportedError

Tensors = dict[str, torch.Tensor]
LEAST_HEAD_DIM, LARGEST_HEAD_DIM = 16, 512  # of KVarN's kernels


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What capture finds of one attention layer. window: tokens a token sees, itself included; 0: all."""

    family: str
    index: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int


@dataclass(frozen=True, kw_only=True)
class Call:
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

    def describe(self, layer: Layer) -> CacheLayer:
        """What the runtime allocates for `layer`; UnsupportedError when the format cannot hold it."""
        ...

    def attend(self, call: Call, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Output [T, Hq, Dv] and the pools after the call; tables and pools by their names in the decoder graph."""
        ...


@dataclass(frozen=True)
class PagedCache:
    """Every tile holds 128 tokens as 16 or 32 bit floats: PagedAttention."""

    bits: int
    kind: str = "paged"

    def describe(self, layer: Layer) -> CacheLayer:
        """As the Protocol says."""
        size = tile_bytes(layer.key_dim, layer.value_dim, self.bits)
        return CacheLayer(
            kv_heads=layer.kv_heads,
            key_dim=layer.key_dim,
            value_dim=layer.value_dim,
            tile_bytes=size,
            window=layer.window,
        )

    def attend(self, call: Call, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """As the Protocol says."""
        tiles = f"kv.{call.layer}.tiles"
        read = (tables["query_starts"], tables["kv_lens"], tables["tile_table"])
        constants = (call.layer, call.scale, call.window, call.softcap, self.bits)
        output, written = torch.ops.enginewright.paged_attention(
            call.query, call.key, call.value, pools[tiles], *read, call.sinks, *constants
        )
        return output, {tiles: written}


@dataclass(frozen=True)
class KVarNCache:
    """Records of 128 tokens in few bits between exact tiles: KVarNAttention; see methods/kvarn.py."""

    k_bits: int
    v_bits: int
    iterations: int
    robust: bool
    windowed: bool
    exact_layers: int
    kind: str = "kvarn"
    bits: int = 16

    def describe(self, layer: Layer) -> CacheLayer:
        """As the Protocol says."""
        if not self._holds(layer.index, layer.window):
            return PagedCache(self.bits).describe(layer)
        where, dim = f"kvarn: {layer.family}: layer {layer.index}", layer.key_dim
        if dim != layer.value_dim:
            raise UnsupportedError(
                f"{where}: got keys of {dim} and values of {layer.value_dim} dimensions, expected equal ones; build "
                "without --apply kvarn"
            )
        if not LEAST_HEAD_DIM <= dim <= LARGEST_HEAD_DIM or dim & (dim - 1):
            raise UnsupportedError(
                f"{where}: got head_dim {dim}, expected a power of two from {LEAST_HEAD_DIM} to {LARGEST_HEAD_DIM}, because "
                "heads are rotated by a Hadamard matrix; build without --apply kvarn"
            )
        if 0 < layer.window < TILE_TOKENS:
            raise UnsupportedError(
                f"{where}: got a window of {layer.window} tokens, expected at least {TILE_TOKENS}, one tile, for anything "
                "to be encoded; use kvarn:windowed=false, which leaves windowed layers at 16 bits"
            )
        return CacheLayer(
            kv_heads=layer.kv_heads,
            key_dim=dim,
            value_dim=dim,
            tile_bytes=kvarn_tile_bytes(dim, self.k_bits, self.v_bits),
            window=layer.window,
            exact_bytes=kvarn_exact_bytes(dim),
        )

    def attend(self, call: Call, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """As the Protocol says."""
        if not self._holds(call.layer, call.window):
            return PagedCache(self.bits).attend(call, tables, pools)
        names = (f"kv.{call.layer}.tiles", f"kv.{call.layer}.exact")
        read = [tables[each.name] for each in KVARN_ATTENTION.inputs if each.name in tables]
        constants = (call.layer, call.scale, call.window, call.softcap, self.k_bits, self.v_bits, self.iterations)
        output, *written = torch.ops.enginewright.kvarn_attention(
            call.query,
            call.key,
            call.value,
            *(pools[name] for name in names),
            *read,
            call.sinks,
            *constants,
            int(self.robust),
            1,  # the pass that folds the rotation of values into the weights comes later
        )
        return output, dict(zip(names, written, strict=True))

    def _holds(self, index: int, window: int) -> bool:
        """Whether a layer is encoded at all."""
        return index >= self.exact_layers and (self.windowed or not window)
