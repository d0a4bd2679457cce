"""KVarN: keys and values of all but the first and the newest tokens in 2, 4 or 8 bits, balanced before they are rounded.

Source: arXiv 2606.03458 (KVarN) and its released code; `plugins/oracles/kvarn.py` defines the codec and
`plugins/oracles/kvarn_attention.py` the three regions of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from enginewright.exporters.caches import CacheFormat, KVarNCache
from enginewright.runtime.errors import ExportError

BITS = (2, 4, 8)
MOST_ITERATIONS = 64


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a cache tile is encoded.

    k_bits, v_bits: of a key's and a value's code: 2, 4 or 8. mode: `release` as the authors released it, whose bounds
    assume keys of ordinary size; `robust` measures each tile first and then works at any size. iterations: of the
    normaliser. windowed: whether layers with a sliding window are encoded, or stay at 16 bits. exact_layers: how many layers
    from the first on stay at 16 bits.
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


def choose_cache(config: Config, cache: CacheFormat) -> CacheFormat:
    """Return the KVarN cache in place of the paged one.

    Raises:
        ExportError: another method has chosen a cache already, or its exact elements were asked to have 32 bits.
    """
    if cache.kind != "paged":
        raise ExportError(f"kvarn: the cache is {cache.kind} already; apply kvarn once")
    if cache.bits != KVarNCache.bits:
        raise ExportError(
            f"kvarn: got --kv-bits {cache.bits}, expected {KVarNCache.bits}: tiles that are not encoded are halves"
        )
    return KVarNCache(
        k_bits=config.k_bits,
        v_bits=config.v_bits,
        iterations=config.iterations,
        robust=config.mode == "robust",
        windowed=config.windowed,
        exact_layers=config.exact_layers,
    )
