"""KVarN: stores keys and values of all but the first and the newest tokens in 2, 4 or 8 bits, balanced before rounding.

Source: arXiv 2606.03458 (KVarN) and its released code; `plugins/oracles/kvarn.py` defines the codec and
`plugins/oracles/kvarn_attention.py` the three regions of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import onnx_ir as ir
import torch

from enginewright.exporters.capture.cache_formats import (
    AttentionCall,
    AttentionLayer,
    CacheFormat,
    PagedCacheFormat,
    Tensors,
)
from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.kvarn.fold_value_rotation import FoldValueRotationPass
from enginewright.exporters.methods.tolerance import COARSE_CODES, Tolerance
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS, kvarn_exact_bytes, kvarn_tile_bytes
from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.errors import ExportError, UnsupportedError

BITS = (2, 4, 8)
MOST_ITERATIONS = 64
LEAST_HEAD_DIM, LARGEST_HEAD_DIM = 16, 512  # that the kernels take


@dataclass(frozen=True, kw_only=True)
class Config:
    """The encoding of cache tiles; `parse_method` creates it.

    k_bits: of a key's code: 2, 4 or 8.
    v_bits: of a value's code: 2, 4 or 8.
    mode: the bounds of the normaliser.
        release: those that the authors released, which assume keys of ordinary size.
        robust: each tile is measured first, so that keys may have any size.
    iterations: of the normaliser, 0 to 64.
    windowed: whether layers with a sliding window are encoded; otherwise they stay at 16 bits.
    exact_layers: how many layers, from the first on, stay at 16 bits.

    Raises:
        ExportError: a value that is not known or out of range.
    """

    k_bits: int = 4
    v_bits: int = 2
    mode: Literal["release", "robust"] = "release"
    iterations: int = 8
    windowed: bool = True
    exact_layers: int = 0

    def __post_init__(self) -> None:
        for name in ("k_bits", "v_bits"):
            if (bits := getattr(self, name)) not in BITS:
                nearest = min(BITS, key=lambda known: (abs(known - bits), -known))
                raise ExportError(f"kvarn: got {name}={bits}, expected 2, 4 or 8; the nearest is {name}={nearest}")
        if self.mode not in ("release", "robust"):
            raise ExportError(f"kvarn: got mode={self.mode!r}, expected release or robust")
        if self.exact_layers < 0:
            raise ExportError(f"kvarn: got exact_layers={self.exact_layers}, expected 0 or more")
        if not 0 <= self.iterations <= MOST_ITERATIONS:
            raise ExportError(
                f"kvarn: got iterations={self.iterations}, expected 0 to {MOST_ITERATIONS}; the authors use 8"
            )


@dataclass(frozen=True)
class KVarNCacheFormat:
    """The cache format of KVarNAttention: records of 128 tokens in few bits between exact tiles; `choose_cache` creates it.

    config: how tiles are encoded, and which layers are.
    bits: the width of an element that is not encoded.
    """

    config: Config
    kind: str = "kvarn"
    bits: int = 16
    policy: dict[str, Any] = field(default_factory=dict)
    token_inputs: dict[str, str] = field(default_factory=dict)
    sees_later: bool = False

    def describe(self, layer: AttentionLayer) -> CacheLayer:
        """Size the records and exact tiles of an encoded layer; any other layer has paged tiles."""
        if not self._encodes(layer.index, layer.window):
            return PagedCacheFormat(self.bits).describe(layer)
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
            tile_bytes=kvarn_tile_bytes(dim, self.config.k_bits, self.config.v_bits),
            window=layer.window,
            exact_bytes=kvarn_exact_bytes(dim),
        )

    def attend(self, call: AttentionCall, tables: Tensors, pools: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Call KVarNAttention on an encoded layer's records and exact tiles; any other layer calls PagedAttention."""
        if not self._encodes(call.layer, call.window):
            return PagedCacheFormat(self.bits).attend(call, tables, pools)
        names = (f"kv.{call.layer}.tiles", f"kv.{call.layer}.exact")
        read = {each.name: tables[each.name] for each in KVARN_ATTENTION.inputs if each.name in tables}
        output, *written = torch.ops.enginewright.kvarn_attention(
            query=call.query,
            key=call.key,
            value=call.value,
            tiles=pools[names[0]],
            exact=pools[names[1]],
            **read,
            sinks=call.sinks,
            layer=call.layer,
            scale=call.scale,
            window=call.window,
            softcap=call.softcap,
            k_bits=self.config.k_bits,
            v_bits=self.config.v_bits,
            iterations=self.config.iterations,
            robust=int(self.config.mode == "robust"),
            rotate_values=1,  # FoldValueRotationPass moves the rotation of values into the weights later
        )
        return output, dict(zip(names, written, strict=True))

    def _encodes(self, index: int, window: int) -> bool:
        """Whether a layer is encoded."""
        return index >= self.config.exact_layers and (self.config.windowed or not window)


def choose_cache(config: Config, cache: CacheFormat) -> CacheFormat:
    """Return the KVarN cache in place of the paged one; ExportError where exact elements are to have 32 bits."""
    if cache.bits != KVarNCacheFormat.bits:
        raise ExportError(
            f"kvarn: got --kv-bits {cache.bits}, expected {KVarNCacheFormat.bits}: tiles that are not encoded are halves"
        )
    return KVarNCacheFormat(config)


def passes(config: Config) -> tuple[ir.passes.PassBase, ...]:
    """Return the pass that moves the rotation of values into the weights."""
    return (FoldValueRotationPass(),)


def tolerance(config: Config, allowed: Tolerance) -> Tolerance:
    """Return the tolerance of int4: codes of a few bits change the model on purpose."""
    return COARSE_CODES


METHOD = Method(
    name="kvarn",
    summary="a cache of 2, 4 or 8 bits",
    paper="2606.03458",
    config=Config,
    choose_cache=choose_cache,
    passes=passes,
    tolerance=tolerance,
)
