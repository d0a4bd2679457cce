"""Unpacks codes that checkpoints keep in words, numbers of few bits that have an exponent, and scales that are exponents."""

from __future__ import annotations

import numpy as np

E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""Twice the number that each code of 4 bits stands for: 1 bit of sign, 2 of exponent, 1 of mantissa.

Source: OCP Microscaling Formats (MX) 1.0, 5.3.3.
"""
_E2M3 = [*range(8), *range(8, 16), *range(16, 32, 2), *range(32, 64, 4)]
E2M3 = np.array([*_E2M3, *(-number for number in _E2M3)], np.int8)
"""Eight times the number that each code of 6 bits stands for: 1 bit of sign, 2 of exponent, 3 of mantissa.

Source: OCP Microscaling Formats (MX) 1.0, 5.3.2.
"""
_BIAS = 127


def exponents_to_scales(exponents: np.ndarray, divisor: int = 1) -> np.ndarray:
    """Return 2^(e - 127) / divisor of exponents uint8, float32; the exponent 255, which is NaN, becomes infinity.

    divisor: a power of two.
    """
    down = divisor.bit_length() - 1
    scales: np.ndarray = np.ldexp(np.float32(1), exponents.astype(np.int32) - _BIAS - down)
    return np.where(exponents == 255, np.float32(np.inf), scales)


def unpack_words(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the codes of each row of `words` int32 [n, w], which are one stream of bits, lowest bit first: uint8 [n, count].

    It is the inverse of `packed_codes.pack_words`, without its offset.
    """
    return unpack_stream(np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8), bits, count)


def unpack_stream(stream: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the codes of each row of `stream` uint8 [n, bytes], lowest bit first, one a byte: uint8 [n, count]."""
    if bits == 8:
        return stream[:, :count]
    if bits in (2, 4):
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = stream[..., None] >> shifts & np.uint8((1 << bits) - 1)
        return codes.reshape(len(stream), stream.shape[1] * len(shifts))[:, :count]
    single = np.unpackbits(stream, axis=-1, count=bits * count, bitorder="little").reshape(len(stream), count, bits)
    return np.packbits(single, axis=-1, bitorder="little")[..., 0]


def unpack_pairs(packed: np.ndarray) -> np.ndarray:
    """Return two codes of 4 bits for each byte of `packed` uint8 [..., m], the low one first: uint8 [..., 2 m]."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def center(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes uint8 counted from the lowest, 0 .. 2^bits - 1, as int8 around 0, -2^(bits - 1) .. 2^(bits - 1) - 1."""
    return (codes - np.uint8(1 << (bits - 1))).view(np.int8)
