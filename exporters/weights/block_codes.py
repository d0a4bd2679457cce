"""Quantises, packs and restores weights as integer codes in blocks with one scale each, and a zero point where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from enginewright.runtime.errors import ExportError

BLOCK_SIZES = (16, 32, 64, 128, 256)
TWO_BIT_BLOCK_SIZES = (32, 64, 128)  # ONNX Runtime 1.31 unpacks others at every use


def quantize_blocks(rows: np.ndarray, bits: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and scales of rows [n, k] float32, in blocks along k, padded with zeros to whole blocks.

    A block's element of largest magnitude gets the lowest code, -2^(bits - 1), so that the whole range is used:
    scale = element / -2^(bits - 1), code = round(x / scale) + 2^(bits - 1), clipped to 0 .. 2^bits - 1.
    x is restored as (code - 2^(bits - 1)) * scale.

    codes: uint8 [n, blocks, block_size * bits / 8]; at 4 bits two codes in a byte, the earlier one in the low nibble.
    scales: float32 [n, blocks].
    """
    n, k = rows.shape
    blocks = -(-k // block_size)
    offset = 1 << (bits - 1)
    codes = np.empty((n, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((n, blocks), np.float32)
    for begin, x in _pieces(rows, blocks, block_size):
        step = len(x)
        scale = _scales_of_largest(x, offset)
        codes[begin : begin + step] = _pack(_nearest_codes(x, scale, np.float32(offset), bits), bits)
        scales[begin : begin + step] = scale
    return codes, scales


def quantize_blocks_with_zero_points(
    rows: np.ndarray, bits: int, block_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes, scales and zero points of rows [n, k] float32, in blocks along k, padded with zeros to whole blocks.

    The codes 0 .. 2^bits - 1 span a block's range, from min(x, 0) to max(x, 0), so that 0 keeps a code of its own:
    scale = (max - min) / (2^bits - 1), zero = round(-min / scale), code = round(x / scale) + zero, clipped.
    x is restored as (code - zero) * scale.

    codes and scales: as of `quantize_blocks`; scales are not negative.
    zero points: uint8 [n, ceil(blocks * bits / 8)], packed in the same way as codes.
    """
    n, k = rows.shape
    blocks, top = -(-k // block_size), (1 << bits) - 1
    codes = np.empty((n, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((n, blocks), np.float32)
    zeros = np.empty((n, blocks), np.uint8)
    for begin, x in _pieces(rows, blocks, block_size):
        low, scale = _lowest_and_scales(x, top)
        zero = np.divide(-low, scale, out=np.zeros_like(scale), where=scale != 0)
        zero = np.clip(np.rint(zero), 0, top)
        codes[begin : begin + len(x)] = _pack(_nearest_codes(x, scale, zero[..., None], bits), bits)
        scales[begin : begin + len(x)], zeros[begin : begin + len(x)] = scale, zero
    return codes, scales, pack_zero_points(zeros, bits)


def codes_with_halves(
    rows: np.ndarray, bits: int, block_size: int, *, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return codes, scales and minima of rows [n, k] float32 as the two functions before choose them, for scales of halves.

    The scales are rounded to halves first, and codes are chosen for what they then are. x is restored as
    (code - 2^(bits - 1)) * scale, or with minima as code * scale + minimum.

    codes: uint8 [n, k], one code in a byte.
    scales, minima: float16 [n, blocks]; no minima if `symmetric`.

    Raises:
        ExportError: a scale is beyond the largest half.
    """
    n, k = rows.shape
    blocks, top = -(-k // block_size), (1 << bits) - 1
    codes = np.empty((n, blocks * block_size), np.uint8)
    scales, minima = np.empty((n, blocks), np.float16), np.empty((n, blocks), np.float16)
    for begin, x in _pieces(rows, blocks, block_size):
        here = slice(begin, begin + len(x))
        if symmetric:
            scale = _halves(_scales_of_largest(x, 1 << (bits - 1)))
            zero = np.float32(1 << (bits - 1))
        else:
            low, scale = map(_halves, _lowest_and_scales(x, top))
            minima[here], zero = low, np.float32(0)
            x = x - low.astype(np.float32)[..., None]
        codes[here] = _nearest_codes(x, scale.astype(np.float32), zero, bits).reshape(len(x), -1)
        scales[here] = scale
    return np.ascontiguousarray(codes[:, :k]), scales, None if symmetric else minima


def _scales_of_largest(x: np.ndarray, offset: int) -> np.ndarray:
    """The scales [rows, blocks] with which a block's element of largest magnitude gets the lowest code, -offset."""
    extreme = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
    scales: np.ndarray = extreme[..., 0] / -offset
    return scales


def _lowest_and_scales(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower end of each block's range, which has 0 in it, and the scale with which codes 0 .. top span the range."""
    low, high = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
    return low, high / top - low / top  # high - low may overflow


def _nearest_codes(x: np.ndarray, scale: np.ndarray, zero: np.ndarray | np.float32, bits: int) -> np.ndarray:
    """The codes uint8 of x [rows, blocks, size], round(x / scale) + zero, clipped; 1 / scale may overflow where x / scale is 8."""
    wide = scale[..., None]
    ratio = np.divide(x, wide, out=np.zeros_like(x), where=wide != 0)
    codes: np.ndarray = np.clip(np.rint(ratio) + zero, 0, (1 << bits) - 1).astype(np.uint8)
    return codes


def _halves(numbers: np.ndarray) -> np.ndarray:
    """The nearest halves; ExportError for numbers that have none."""
    largest = float(np.abs(numbers).max(initial=0.0))
    if not largest <= float(np.finfo(np.float16).max):
        raise ExportError(
            f"weights: got a scale of {largest:g}, expected at most 65504, the largest half; do --weights with linear=onnxruntime"
        )
    return numbers.astype(np.float16)


def _pieces(rows: np.ndarray, blocks: int, block_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Some rows at a time as [rows, blocks, block_size] with the first one's number, so that rounding needs little memory."""
    n, k = rows.shape
    step = max(1, (1 << 22) // max(k, 1))
    for begin in range(0, n, step):
        part = rows[begin : begin + step]
        padded = np.zeros((len(part), blocks * block_size), np.float32)
        padded[:, :k] = part
        yield begin, padded.reshape(len(part), blocks, block_size)


def pack_zero_points(zeros: np.ndarray, bits: int) -> np.ndarray:
    """Pack zero points [n, blocks] uint8 into bytes, each row by itself: uint8 [n, ceil(blocks * bits / 8)]."""
    per_byte = 8 // bits
    padded = np.zeros((len(zeros), -(-zeros.shape[1] // per_byte) * per_byte), np.uint8)
    padded[:, : zeros.shape[1]] = zeros
    return _pack(padded, bits)


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes [..., k] uint8 into bytes: two codes of 4 bits in a byte, or four of 2 bits, the earlier in the lower bits.

    Codes of 8 bits stay as they are.
    """
    if bits == 8:
        return codes
    halves: np.ndarray = codes[..., 0::2] | (codes[..., 1::2] << bits)
    return halves if bits == 4 else halves[..., 0::2] | (halves[..., 1::2] << 4)


def stored_bits(bits: int) -> int:
    """The narrower one of the two widths that every kernel takes, 4 and 8, that holds codes of `bits` bits."""
    return 4 if bits <= 4 else 8


def block_form(bits: int, group_size: int, k: int, *, takes_two: bool = False) -> tuple[int, int]:
    """Return the bits and the block size in which codes are stored without a change.

    Codes of 2 and 3 bits are stored in 4 bits, with the same scales. For an op that takes 2 bits, codes of 2 bits stay so, in
    blocks that it is fast with. A block size divides the group size, unless one group is a whole row.

    bits: of a code.
    group_size: columns that share a scale.
    k: columns of a row.
    takes_two: whether the op takes codes of 2 bits.

    Raises:
        ExportError: no block size divides the groups, or no stored form holds so many bits.
    """
    if not 2 <= bits <= 8:
        raise ExportError(f"quantised weights: got {bits} bits, expected 2 to 8")
    blocks = [size for size in BLOCK_SIZES if group_size % size == 0]
    if takes_two and bits == 2 and (fast := [size for size in TWO_BIT_BLOCK_SIZES if group_size % size == 0]):
        return 2, max(fast)
    if not blocks and group_size != k:
        raise ExportError(f"quantised weights: got groups of {group_size}, expected a multiple of {BLOCK_SIZES[0]}")
    return stored_bits(bits), max(blocks, default=BLOCK_SIZES[0])


def store_codes(
    codes: np.ndarray, scales: np.ndarray, group_size: int, stored_bits: int, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes [n, k] int8 and scales [n, k / group_size] in the form of `quantize_blocks`: packed, offset, in blocks."""
    n, k = codes.shape
    blocks, offset = -(-k // block_size), 1 << (stored_bits - 1)
    padded = np.full((n, blocks * block_size), offset, np.uint8)
    padded[:, :k] = codes.view(np.uint8) + np.uint8(offset)
    begins = np.arange(blocks) * block_size // group_size
    return _pack(padded.reshape(n, blocks, block_size), stored_bits), np.ascontiguousarray(scales[:, begins])


def store_zero_points(
    zero_points: np.ndarray, k: int, group_size: int, stored_bits: int, block_size: int
) -> np.ndarray:
    """Return zero points [n, k / group_size] int8 in the form of `quantize_blocks_with_zero_points`."""
    begins = np.arange(-(-k // block_size)) * block_size // group_size
    unsigned = zero_points.view(np.uint8) + np.uint8(1 << (stored_bits - 1))
    return pack_zero_points(unsigned[:, begins], stored_bits)


def dequantize_blocks(
    codes: np.ndarray, scales: np.ndarray, bits: int, k: int, zero_points: np.ndarray | None = None
) -> np.ndarray:
    """Return the rows [n, k] float32 that codes and scales of `quantize_blocks` stand for, or those with zero points."""
    n, blocks = scales.shape
    q = _unpack(codes, bits).reshape(n, blocks, -1).astype(np.float32)
    if zero_points is None:
        q -= 1 << (bits - 1)
    else:
        q -= _unpack(zero_points, bits).reshape(n, -1)[:, :blocks, None]
    rows: np.ndarray = q * scales[..., None]
    return rows.reshape(n, -1)[:, :k]


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes in bytes, one code a byte, along a new last axis."""
    codes: np.ndarray = packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & ((1 << bits) - 1)
    return codes


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return codes int8 [..., n, k] and scales float32 [..., n], whose product is close to the weight.

    The largest magnitude in a row gets the code 127 or -127.
    """
    scales = (np.abs(weight).max(axis=-1, initial=0.0) / 127).astype(np.float32)
    steps = np.where(scales > 0, scales, np.float32(1))[..., None]
    return np.clip(np.rint(weight / steps), -127, 127).astype(np.int8), scales
