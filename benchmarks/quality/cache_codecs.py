"""Codecs for one tile of keys and values: KVarN, and the methods that it is compared with.

A method makes three choices: whether keys and values are rotated by the Hadamard matrix along their channels, whether the tile
is balanced before it is rounded, and whether keys have a scale for each channel or for each token. Values always have one
scale per token. All methods round asymmetrically from minimum to maximum and store scale and offset as halves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.oracles.kvarn import BITS, HALF_MAX, SMALLEST_STEP, Mode, decode, encode, hadamard

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Axis = Literal["channel", "token"]

GROUP = 128
"""The most elements that share a scale."""


@dataclass(frozen=True, kw_only=True)
class CodecMethod:
    """A way to round a tile.

    doc: a short description.
    keys: whether each channel or each token of the keys has its own scale.
    rotated: whether keys and values are rotated by the Hadamard matrix.
    balanced: the mode of KVarN's normaliser; None: the tile is not balanced.
    """

    doc: str
    keys: Axis
    rotated: bool = False
    balanced: Mode | None = None


METHODS = {
    "kvarn": CodecMethod(doc="KVarN as released", keys="channel", rotated=True, balanced="release"),
    "kvarn-robust": CodecMethod(
        doc="KVarN, tile first divided by its size", keys="channel", rotated=True, balanced="robust"
    ),
    "kivi": CodecMethod(doc="KIVI: keys per channel, values per token", keys="channel"),
    "hadamard-token": CodecMethod(doc="QuaRot: rotated, both per token", keys="token", rotated=True),
    "hadamard-channel": CodecMethod(doc="rotated, then KIVI's axes: KVarN unbalanced", keys="channel", rotated=True),
    "rtn": CodecMethod(doc="both per token, not rotated", keys="token"),
}


@dataclass(frozen=True, kw_only=True)
class Codec:
    """A method at given widths of codes; created by `parse_codec`.

    k_bits, v_bits: bits of a key's and of a value's code.
    tokens: tokens of a tile.
    exact_layers: the number of first layers that are not quantised.
    windowed: whether layers with a sliding window are quantised.
    """

    method: str
    k_bits: int
    v_bits: int
    tokens: int = 128
    exact_layers: int = 0
    windowed: bool = True

    @property
    def name(self) -> str:
        """The name on the command line, such as kvarn-k4v2."""
        return f"{self.method}-k{self.k_bits}v{self.v_bits}"

    def restore(self, keys: Floats, values: Floats) -> tuple[Doubles, Doubles]:
        """Store and read back tiles of keys [..., tokens, D] and values [..., tokens, Dv]."""
        method = METHODS[self.method]
        return _restored(keys, self.k_bits, method.keys, method), _restored(values, self.v_bits, "token", method)

    def layers(self, windows: Sequence[int]) -> list[int]:
        """The numbers of the layers that are quantised; windows: each layer's sliding window in tokens, 0 for none."""
        return [i for i, window in enumerate(windows) if i >= self.exact_layers and (self.windowed or not window)]

    def restore_layers(self, keys: Floats, values: Floats, layers: Sequence[int]) -> tuple[Floats, Floats]:
        """Store and read back the tiles [all layers, ...] of the given layers; the result has the arguments' types."""
        keys, values = keys.copy(), values.copy()
        for layer in layers:  # one by one, so that the codec's doubles stay small
            own = keys[layer].astype(np.float64), values[layer].astype(np.float64)
            keys[layer], values[layer] = self.restore(*own)
        return keys, values

    def bits_per_element(self, key_dim: int, value_dim: int) -> tuple[float, float]:
        """The stored bits of a key's and of a value's element, scales and offsets included."""
        method = METHODS[self.method]
        return (
            self.k_bits + _overhead(self.tokens, key_dim, method.keys, method),
            self.v_bits + _overhead(self.tokens, value_dim, "token", method),
        )

    def bytes_per_token(self, key_dim: int, value_dim: int) -> float:
        """The stored bytes of one token in one KV head."""
        keys, values = self.bits_per_element(key_dim, value_dim)
        return (keys * key_dim + values * value_dim) / 8


def parse_codec(name: str, exact_layers: int = 0, *, windowed: bool = True) -> Codec:
    """The codec with the name `METHOD-kXvY`.

    Raises:
        ValueError: the method or one of the widths is unknown.
    """
    match = re.fullmatch(r"(.+)-k(\d+)v(\d+)", name)
    if match is None or match[1] not in METHODS:
        known = ", ".join(f"{method}-kXvY" for method in METHODS)
        raise ValueError(f"--caches: got {name!r}, expected fp16 or one of {known}")
    widths = int(match[2]), int(match[3])
    if not set(widths) <= set(BITS):
        raise ValueError(f"--caches: got {name!r}, expected bits among {', '.join(map(str, BITS))}")
    return Codec(method=match[1], k_bits=widths[0], v_bits=widths[1], exact_layers=exact_layers, windowed=windowed)


def round_groups(x: Floats, bits: int, axis: int) -> Doubles:
    """Round x to 2 ** bits even steps from minimum to maximum of every GROUP elements along `axis`, ties to even."""
    moved = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    size = min(GROUP, moved.shape[-1])
    groups = moved.reshape(*moved.shape[:-1], -1, size)
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    top = 2**bits - 1
    step = np.maximum((high - low) / top, SMALLEST_STEP)
    codes = np.clip(np.rint((groups - low) / step), 0, top)
    restored: Doubles = (codes * _half(step) + _half(low)).reshape(moved.shape)
    return np.moveaxis(restored, -1, axis)


def _restored(x: Floats, bits: int, per: Axis, method: CodecMethod) -> Doubles:
    """Store and read back x [..., tokens, D].

    per: whether each channel or each token has its own scale.
    """
    turn = hadamard(x.shape[-1]) if method.rotated else None
    rotated: Floats = x if turn is None else x @ turn
    if method.balanced is None:
        restored = round_groups(rotated, bits, axis=-1 if per == "token" else -2)
    elif per == "token":
        restored = decode(encode(rotated, bits, mode=method.balanced))
    else:
        restored = decode(encode(rotated.swapaxes(-1, -2), bits, mode=method.balanced)).swapaxes(-1, -2)
    return restored if turn is None else restored @ turn


def _overhead(tokens: int, dim: int, per: Axis, method: CodecMethod) -> float:
    """Bits per element for a tile's scales and offsets, which have 16 bits each."""
    rows, length = (tokens, dim) if per == "token" else (dim, tokens)
    if method.balanced is not None:
        return 16 * (2 * rows + length) / (rows * length)
    return 32 / min(GROUP, length)


def _half(x: Doubles) -> Doubles:
    return np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float64)
