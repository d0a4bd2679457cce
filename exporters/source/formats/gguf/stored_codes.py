"""Codes, scales and minima of the types of blocks that are whole numbers times a scale, as an engine can hold them.

Block layouts: ggml, github.com/ggml-org/ggml, src/ggml-common.h. A number is

    scale * code                                        of a type without minima
    scale * (code + 2^(bits - 1)) + minimum             of one with minima
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from enginewright.exporters.source.quantized.packing import E2M1, center
from enginewright.exporters.weights.factored_scales import FactoredScales, join_factored

HALVES, FACTORED = "halves", "factored"


@dataclass(frozen=True, kw_only=True)
class BlockCodes:
    """The parts of some blocks; the `split` of a `CodeType` creates it.

    codes: int8 [blocks, numbers in a block].
    scales: float32 [blocks, groups in a block].
    minima: float32 [blocks, groups in a block]; None for a type without.
    factored: the scales and minima as products, of blocks in the place of rows; None for a type without factors.
    """

    codes: np.ndarray
    scales: np.ndarray
    minima: np.ndarray | None = None
    factored: FactoredScales | None = None


@dataclass(frozen=True, kw_only=True)
class CodeType:
    """A type of blocks; CODE_TYPES has them by GGUF's number.

    bits: of a code.
    group_size: numbers that share a scale.
    split: the parts of bytes [blocks, n] uint8.
    has_minima: whether there are minima.
    scales: what scales and minima are: HALVES, or FACTORED, products of a half and a small number; empty for powers of two.
    """

    bits: int
    group_size: int
    split: Callable[[np.ndarray], BlockCodes]
    has_minima: bool = False
    scales: str = ""

    def read(self, content: bytes, shape: tuple[int, ...], kind: int) -> BlockCodes:
        """Return codes [n, k], scales and minima [n, k / group_size] of a matrix of the type `kind`."""
        rows, columns = shape
        size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)][1]
        with np.errstate(invalid="ignore", over="ignore"):  # damaged scales are refused by the caller
            found = self.split(np.frombuffer(content, np.uint8).reshape(-1, size))
        groups = columns // self.group_size
        return BlockCodes(
            codes=found.codes.reshape(rows, columns),
            scales=found.scales.reshape(rows, groups),
            minima=None if found.minima is None else found.minima.reshape(rows, groups),
            factored=None if found.factored is None else join_factored([found.factored], _of_rows(rows)),
        )


def _of_rows(rows: int) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function that turns what blocks have into what rows have, [blocks, m] into [rows, m * blocks / rows]."""
    return lambda parts: parts[0].reshape(rows, -1 if rows else 0)


def _half(content: np.ndarray) -> np.ndarray:
    """The float16 numbers of bytes [blocks, 2 m]: float32 [blocks, m]."""
    return _stored_half(content).astype(np.float32)


def _stored_half(content: np.ndarray) -> np.ndarray:
    """The float16 numbers of bytes [blocks, 2 m]: [blocks, m]."""
    return np.ascontiguousarray(content).view("<f2")


def _nibbles(content: np.ndarray) -> np.ndarray:
    """Two codes a byte, the low ones in the first half of the result."""
    return np.concatenate([content & 15, content >> 4], axis=1)


def _bits(content: np.ndarray, bits: int) -> np.ndarray:
    """Codes of `bits` bits in bytes [blocks, m]: uint8 [blocks, 8 / bits, m], those of the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return content[:, None] >> shifts & np.uint8((1 << bits) - 1)


def _fifth(content: np.ndarray) -> np.ndarray:
    """The fifth bits of 32 codes, in 4 bytes: uint8 [blocks, 32], each 0 or 16."""
    return np.unpackbits(content, axis=1, bitorder="little") << 4


def _with_factors(
    codes: np.ndarray, factors: np.ndarray, scales: np.ndarray, lowest: np.ndarray | None = None
) -> BlockCodes:
    """The codes of blocks [blocks, n] whose scales, and what is taken off numbers, are whole and have one factor each.

    factors: float16 [blocks, 1], or with `lowest` [blocks, 2].
    scales, lowest: [blocks, groups].
    """
    factors = factors.copy()
    factors[:, 1:] *= np.float16(-1)
    minima = None if lowest is None else lowest.astype(np.int8)
    factored = FactoredScales(scales=scales.astype(np.int8), factors=factors, minima=minima)
    wide, low = factored.restore()
    return BlockCodes(codes=codes, scales=wide, minima=low, factored=factored)


def _q4_0(x: np.ndarray) -> BlockCodes:
    return BlockCodes(codes=center(_nibbles(x[:, 2:]), 4), scales=_half(x[:, :2]))


def _q4_1(x: np.ndarray) -> BlockCodes:
    return BlockCodes(codes=center(_nibbles(x[:, 4:]), 4), scales=_half(x[:, :2]), minima=_half(x[:, 2:4]))


def _q5_0(x: np.ndarray) -> BlockCodes:
    return BlockCodes(codes=center(_nibbles(x[:, 6:]) | _fifth(x[:, 2:6]), 5), scales=_half(x[:, :2]))


def _q5_1(x: np.ndarray) -> BlockCodes:
    codes = center(_nibbles(x[:, 8:]) | _fifth(x[:, 4:8]), 5)
    return BlockCodes(codes=codes, scales=_half(x[:, :2]), minima=_half(x[:, 2:4]))


def _q8_0(x: np.ndarray) -> BlockCodes:
    return BlockCodes(codes=np.ascontiguousarray(x[:, 2:]).view(np.int8), scales=_half(x[:, :2]))


def _q2_k(x: np.ndarray) -> BlockCodes:
    """16 groups of 16: a byte of scale and minimum each, then codes of 2 bits, then the block's two factors."""
    factors = _stored_half(x[:, 80:84])
    quarters = x[:, 16:80].reshape(-1, 32)
    codes = _bits(quarters, 2).reshape(len(x), 256)
    return _with_factors(center(codes, 2), factors, x[:, :16] & 15, x[:, :16] >> 4)


def _q3_k(x: np.ndarray) -> BlockCodes:
    """16 groups of 16: the third bits, codes of 2 bits, scales of 6 bits around 32, the block's factor."""
    high = _bits(x[:, :32], 1).reshape(len(x), 256)
    low = _bits(x[:, 32:96].reshape(-1, 32), 2).reshape(len(x), 256)
    packed = x[:, 96:108]
    scales = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    scales = scales | (_bits(packed[:, 8:], 2).reshape(len(x), 16) << 4)
    return _with_factors(center(low | (high << 2), 3), _stored_half(x[:, 108:110]), scales.astype(np.int8) - 32)


def _sixths(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 8 scales and 8 minima of 6 bits that share 12 bytes: uint8 [blocks, 8] each."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return scales, minima


def _q4_k(x: np.ndarray) -> BlockCodes:
    """8 groups of 32: the block's two factors, scales and minima of 6 bits, then codes of two groups in 32 bytes."""
    factors, (scales, minima) = _stored_half(x[:, :4]), _sixths(x[:, 4:16])
    codes = _bits(x[:, 16:].reshape(-1, 32), 4).reshape(len(x), 256)
    return _with_factors(center(codes, 4), factors, scales, minima)


def _q5_k(x: np.ndarray) -> BlockCodes:
    """As Q4_K, with the fifth bits of all codes in 32 bytes before them."""
    factors, (scales, minima) = _stored_half(x[:, :4]), _sixths(x[:, 4:16])
    low = _bits(x[:, 48:].reshape(-1, 32), 4).reshape(len(x), 256)
    codes = low | (_bits(x[:, 16:48], 1).reshape(len(x), 256) << 4)
    return _with_factors(center(codes, 5), factors, scales, minima)


def _q6_k(x: np.ndarray) -> BlockCodes:
    """16 groups of 16: 4 bits of each code, then 2, then scales of 8 bits, the block's factor."""
    low = _bits(x[:, :128].reshape(-1, 64), 4).reshape(len(x), 256)
    high = _bits(x[:, 128:192].reshape(-1, 32), 2).reshape(len(x), 256)
    return _with_factors(center(low | (high << 4), 6), _stored_half(x[:, 208:210]), x[:, 192:208].view(np.int8))


_UNEVEN = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _iq4_nl(x: np.ndarray) -> BlockCodes:
    """Codes of 4 bits that stand for 16 uneven steps, which are whole numbers of 8 bits."""
    return BlockCodes(codes=_UNEVEN[_nibbles(x[:, 2:])], scales=_half(x[:, :2]))


def _mxfp4(x: np.ndarray) -> BlockCodes:
    """A power of two, then codes whose doubles are whole."""
    exponents = x[:, :1].astype(np.int32) - 128  # the library has no NaN among them
    return BlockCodes(codes=E2M1[_nibbles(x[:, 1:])], scales=np.ldexp(np.float32(1), exponents))


CODE_TYPES = {
    int(kind): CodeType(bits=bits, group_size=group, split=split, has_minima=minima, scales=scales)
    for kind, bits, group, split, minima, scales in (
        (GGMLQuantizationType.Q4_0, 4, 32, _q4_0, False, HALVES),
        (GGMLQuantizationType.Q4_1, 4, 32, _q4_1, True, HALVES),
        (GGMLQuantizationType.Q5_0, 5, 32, _q5_0, False, HALVES),
        (GGMLQuantizationType.Q5_1, 5, 32, _q5_1, True, HALVES),
        (GGMLQuantizationType.Q8_0, 8, 32, _q8_0, False, HALVES),
        (GGMLQuantizationType.Q2_K, 2, 16, _q2_k, True, FACTORED),
        (GGMLQuantizationType.Q3_K, 3, 16, _q3_k, False, FACTORED),
        (GGMLQuantizationType.Q4_K, 4, 32, _q4_k, True, FACTORED),
        (GGMLQuantizationType.Q5_K, 5, 32, _q5_k, True, FACTORED),
        (GGMLQuantizationType.Q6_K, 6, 16, _q6_k, False, FACTORED),
        (GGMLQuantizationType.IQ4_NL, 8, 32, _iq4_nl, False, HALVES),
        (GGMLQuantizationType.MXFP4, 8, 32, _mxfp4, False, ""),
    )
}
