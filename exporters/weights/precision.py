"""The storage of weights: float32, or blocks of 4 or 8 bits with one scale each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from enginewright.runtime.errors import ExportError

BITS = {"int4": 4, "int8": 8}
BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Weight storage of an engine; `parse_weights` creates it.

    kind: float32, or int4 or int8 in blocks along the input axis.
    block_size: weights that share a scale: 16, 32, 64, 128 or 256.
    compute: type of the activations in a product with quantised weights: int8 (faster) or float32 (exact).
    embedding: whether the embedding is quantised as well.
    lm_head: whether the output projection is quantised as well.

    Raises:
        ExportError: a value that is not known.
    """

    kind: Literal["float32", "int4", "int8"] = "float32"
    block_size: int = 32
    compute: Literal["int8", "float32"] = "int8"
    embedding: bool = True
    lm_head: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("float32", *BITS):
            raise ExportError(f"weights: got kind {self.kind!r}, expected float32, int8 or int4")
        if self.block_size not in BLOCK_SIZES:
            raise ExportError(f"weights: got block_size {self.block_size}, expected {_listed(BLOCK_SIZES)}")
        if self.compute not in ("int8", "float32"):
            raise ExportError(f"weights: got compute {self.compute!r}, expected int8 or float32")

    @property
    def bits(self) -> int:
        """Bits of a stored weight."""
        return BITS.get(self.kind, 32)


def _listed(sizes: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]}"
