"""The stored tensors of a module in each format, as one matrix.

    pack-quantized          weight_packed int32 [n, ceil(k * bits / 32)], weight_shape int64 [2],
                            weight_zero_point int32 [ceil(n * bits / 32), groups], packed along n
    int-quantized           weight int8 [n, k], weight_zero_point int8, one for each scale
    float-quantized         weight float8 [n, k]
    naive-quantized         either of the two
    mxfp8-quantized         weight float8 [n, k], weight_scale uint8, exponents
    nvfp4-pack-quantized    weight_packed uint8 [n, k / 2], weight_scale float8 [n, k / 16], weight_global_scale float32 [1],
                            which weight_scale is divided by
    mxfp4-pack-quantized    weight_packed uint8 [n, k / 2], weight_scale uint8 [n, k / 32], exponents
    mxfp6-pack-quantized    weight_packed uint8 [n, 3 k / 4], weight_scale as before

All have weight_scale, by default of a float type; number = (code - zero point) * scale. weight_g_idx int32 [k], with
"actorder": "group", is the group of each column.

Source: github.com/vllm-project/compressed-tensors, 0.20; weight_g_idx: 0.13.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from enginewright.exporters.source.formats.compressed_tensors.scheme import Scheme
from enginewright.exporters.source.formats.compressed_tensors.whole_codes import WholeCodes
from enginewright.exporters.source.quantized.packing import center, exponents_to_scales, unpack_words
from enginewright.exporters.source.quantized.quantized_folder import StoredMatrix
from enginewright.exporters.source.quantized.shared_scales import ScaleTile
from enginewright.exporters.source.quantized.small_floats import (
    FLOAT8,
    float8_matrix,
    small_float_matrix,
    small_float_shape,
)
from enginewright.exporters.source.quantized.stored_parts import SCALE_TYPES, ModuleParts
from enginewright.runtime.errors import ExportError

PACKED, WEIGHT, SCALE, ZEROS, SHAPE = "weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape"
GLOBAL = "weight_global_scale"
EXPONENTS = ("U8", "F8_E8M0")
Layout = Callable[[ModuleParts, Scheme], StoredMatrix]


def pack_quantized(parts: ModuleParts, scheme: Scheme) -> StoredMatrix:
    """Return whole codes that are packed in words."""
    n, words = parts.matrix(PACKED, "I32")
    parts.check(SHAPE, ((2,),), "I64", "I32")
    shape = parts.array(SHAPE).tolist()
    if shape[0] != n or shape[1] < 0 or -(-shape[1] * scheme.bits // 32) != words:
        raise ExportError(
            f"{parts.stored(SHAPE).file}: tensor {parts.name(SHAPE)!r} got {shape}, but {PACKED!r} is [{n}, {words}] with "
            f"{scheme.bits} bits a code; the settings belong to another checkpoint"
        )
    tile = scheme.tile(parts.name(PACKED), (n, shape[1]))
    parts.check(SCALE, tile.stored_shapes, *SCALE_TYPES)
    packs_zeros = scheme.strategy in ("group", "channel")
    if parts.has(ZEROS) and packs_zeros:
        parts.check(ZEROS, ((-(-n * scheme.bits // 32), tile.counts[1]),), "I32")
    elif parts.has(ZEROS):
        parts.check(ZEROS, tile.stored_shapes, "I8")

    def load() -> np.ndarray:
        return center(unpack_words(parts.array(PACKED), scheme.bits, shape[1]), scheme.bits)

    def zeros() -> np.ndarray:
        stored = parts.array(ZEROS)
        if not packs_zeros:
            return tile.by_row(stored)
        return np.ascontiguousarray(center(unpack_words(stored.T, scheme.bits, n), scheme.bits).T)

    names = (PACKED, SCALE, SHAPE)
    return WholeCodes(parts=parts, scheme=scheme, tile=tile, names=names, load=load, zeros=zeros).matrix()


def plain(parts: ModuleParts, scheme: Scheme) -> StoredMatrix:
    """Return codes of which each has a byte: whole ones, or float8."""
    if scheme.is_float:
        tile = scheme.tile(parts.name(WEIGHT), parts.matrix(WEIGHT, *FLOAT8))
        parts.check(SCALE, tile.stored_shapes, *SCALE_TYPES)
        return float8_matrix(parts, (WEIGHT, SCALE), tile, partial(parts.finite, SCALE))
    tile = scheme.tile(parts.name(WEIGHT), parts.matrix(WEIGHT, "I8"))
    parts.check(SCALE, tile.stored_shapes, *SCALE_TYPES)
    if parts.has(ZEROS):
        parts.check(ZEROS, tile.stored_shapes, "I8")

    def load() -> np.ndarray:
        codes, bound = parts.array(WEIGHT), 1 << (scheme.bits - 1)
        if codes.size and not -bound <= int(codes.min()) <= int(codes.max()) < bound:
            raise ExportError(
                f"{parts.stored(WEIGHT).file}: tensor {parts.name(WEIGHT)!r} got codes beyond {scheme.bits} bits; "
                "the settings belong to another checkpoint"
            )
        return codes

    return WholeCodes(
        parts=parts,
        scheme=scheme,
        tile=tile,
        names=(WEIGHT, SCALE),
        load=load,
        zeros=lambda: tile.by_row(parts.array(ZEROS)),
    ).matrix()


def mxfp8(parts: ModuleParts, scheme: Scheme) -> StoredMatrix:
    """Return float8 numbers whose scales are powers of two."""
    tile = scheme.tile(parts.name(WEIGHT), parts.matrix(WEIGHT, *FLOAT8))
    parts.check(SCALE, (tile.counts,), *EXPONENTS)
    return float8_matrix(parts, (WEIGHT, SCALE), tile, partial(_powers, parts, 1))


def mx_packed(parts: ModuleParts, scheme: Scheme) -> StoredMatrix:
    """Return codes of 4 or 6 bits with an exponent, whose scales are powers of two."""
    tile = _small_float_tile(parts, scheme)
    parts.check(SCALE, (tile.counts,), *EXPONENTS)
    read = partial(_powers, parts)
    names = (PACKED, SCALE)
    return small_float_matrix(parts, names, f"MXFP{scheme.bits}", tile.shape, scheme.bits, scheme.group_size, read)


def nvfp4(parts: ModuleParts, scheme: Scheme) -> StoredMatrix:
    """Return codes of 4 bits with an exponent, whose scales are float8 over one number."""
    tile = _small_float_tile(parts, scheme)
    parts.check(SCALE, (tile.counts,), *FLOAT8, *SCALE_TYPES)
    parts.check(GLOBAL, ((1,), ()), "F32")

    def read(divisor: int) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = parts.finite(SCALE) / parts.finite(GLOBAL).reshape(())
        return parts.check_finite(scales, GLOBAL) / np.float32(divisor)

    names = (PACKED, SCALE, GLOBAL)
    return small_float_matrix(parts, names, "NVFP4", tile.shape, scheme.bits, scheme.group_size, read)


LAYOUTS: dict[str, Layout] = {
    "pack-quantized": pack_quantized,
    "int-quantized": plain,
    "float-quantized": plain,
    "naive-quantized": plain,
    "mxfp8-quantized": mxfp8,
    "mxfp4-pack-quantized": mx_packed,
    "mxfp6-pack-quantized": mx_packed,
    "nvfp4-pack-quantized": nvfp4,
}
"""What makes a matrix of the tensors of each format in `scheme.FORMATS`."""
IS_PACKED = {name: layout not in (plain, mxfp8) for name, layout in LAYOUTS.items()}
"""Whether a format calls its codes "weight_packed", and not "weight"."""


def _small_float_tile(parts: ModuleParts, scheme: Scheme) -> ScaleTile:
    return scheme.tile(parts.name(PACKED), small_float_shape(parts, PACKED, scheme.bits, scheme.group_size))


def _powers(parts: ModuleParts, divisor: int = 1) -> np.ndarray:
    return parts.check_finite(exponents_to_scales(_exponents(parts), divisor), SCALE)


def _exponents(parts: ModuleParts) -> np.ndarray:
    stored = parts.source.files.read_stored(parts.name(SCALE))
    exponents: np.ndarray = stored.view(torch.uint8).numpy()
    return exponents
