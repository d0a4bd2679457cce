"""An opened directory of ModelOpt: each module with a scale, as a matrix of the codes that its algorithm has.

    W4A16_AWQ         weight uint8 [n / 2, k], two rows in one, even rows in the low nibbles; weight_scale [n, k / group_size]
    W4A16             weight uint8 [n / 2, k], weight_scale [n]
    W8A16             weight int8 [n, k], weight_scale [n]
    FP8               weight float8 [n, k], weight_scale []
    NVFP4, NVFP4_AWQ  weight uint8 [n, k / 2], weight_scale float8 [n, k / 16], weight_scale_2 float32 []; number = E2M1 code *
                      weight_scale * weight_scale_2

The input of a module with pre_quant_scale [k] is multiplied by it. Where it is not all ones, so are the columns of the matrix.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from enginewright.exporters.source.formats.modelopt.algorithm import FILE, Algorithm, Algorithms, read_algorithms
from enginewright.exporters.source.formats.safetensors import CONFIG
from enginewright.exporters.source.quantized.activation_folder import CACHE, ActivationFolder
from enginewright.exporters.source.quantized.exported_bits import narrow
from enginewright.exporters.source.quantized.quantized_folder import SETTINGS, StoredMatrix
from enginewright.exporters.source.quantized.shared_scales import ScaleTile
from enginewright.exporters.source.quantized.small_floats import (
    FLOAT8,
    float8_matrix,
    small_float_matrix,
    small_float_shape,
)
from enginewright.exporters.source.quantized.stored_parts import (
    SCALE_TYPES,
    ModuleParts,
    matrix_of_codes,
    matrix_of_numbers,
    modules_of_codes,
)
from enginewright.exporters.source.unused import UnusedParts
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

WEIGHT, SCALE, SECOND, INPUT = "weight", "weight_scale", "weight_scale_2", "pre_quant_scale"
SMOOTHED = "its inputs are multiplied by numbers of their own (pre_quant_scale)"


class UnifiedFolder(ActivationFolder):
    """An opened directory; `SOURCE.open` creates it."""

    def matrices(self) -> Mapping[str, StoredMatrix]:
        """Every module with codes or a scale."""
        found = {}
        scaled = [name.removesuffix(f".{SCALE}") for name in self.files.tensors if name.endswith(f".{SCALE}")]
        for module in dict.fromkeys([*scaled, *modules_of_codes(self)]):
            parts, algorithm = ModuleParts(self, module, self.code_bits.get(module, 0)), self._algorithms.find(module)
            found[f"{module}.{WEIGHT}"] = _with_inputs(parts, LAYOUTS[algorithm.name](parts, algorithm))
        return found

    def unused(self) -> Iterator[UnusedParts]:
        """Tensors for activations and caches, and the type of the cache."""
        yield from super().unused()
        if (cache := self._algorithms.cache)[0]:
            file = FILE if (self.path / FILE).is_file() else CONFIG
            holder = "quantization" if file == FILE else SETTINGS
            yield UnusedParts(file=file, names=(f"{holder}.{cache[1]}={cache[0]}",), reason=CACHE)

    @functools.cached_property
    def _algorithms(self) -> Algorithms:
        return read_algorithms(self.path)


def _four_bits(parts: ModuleParts, algorithm: Algorithm) -> StoredMatrix:
    pairs, k = parts.matrix(WEIGHT, "U8")

    def load() -> np.ndarray:
        packed = parts.array(WEIGHT)
        nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(2 * pairs, k)
        return ((nibbles ^ 8).view(np.int8) - 8).astype(np.int8)  # two's complement

    return _whole_codes(parts, (2 * pairs, k), 4, algorithm, load)


def _eight_bits(parts: ModuleParts, algorithm: Algorithm) -> StoredMatrix:
    return _whole_codes(parts, parts.matrix(WEIGHT, "I8"), 8, algorithm, partial(parts.array, WEIGHT))


def _whole_codes(
    parts: ModuleParts, shape: tuple[int, int], bits: int, algorithm: Algorithm, load: Callable[[], np.ndarray]
) -> StoredMatrix:
    size = algorithm.group_size or shape[1]
    if shape[1] % size:
        raise ExportError(
            f"{parts.stored(WEIGHT).file}: tensor {parts.name(WEIGHT)!r} got {shape[1]} columns, expected a multiple of the "
            f"group size {size}; the settings belong to another checkpoint"
        )
    tile = ScaleTile(shape=shape, rows=1, columns=size)
    parts.check(SCALE, tile.stored_shapes, *SCALE_TYPES)
    stored = QuantizedRows(
        bits=bits,
        group_size=size,
        load=lambda: (load(), tile.by_row(parts.finite(SCALE))),
        halves=parts.has_halves(SCALE),
    )
    rows = narrow(parts, stored)
    return matrix_of_codes(parts.names(WEIGHT, SCALE), shape, f"int{rows.bits} {tile.told}", rows)


def _float8(parts: ModuleParts, _: Algorithm) -> StoredMatrix:
    shape = parts.matrix(WEIGHT, *FLOAT8)
    tile = ScaleTile(shape=shape, rows=shape[0], columns=shape[1])
    parts.check(SCALE, ((), (1,)), *SCALE_TYPES)
    return float8_matrix(parts, (WEIGHT, SCALE), tile, partial(parts.finite, SCALE))


def _four_bit_floats(parts: ModuleParts, algorithm: Algorithm) -> StoredMatrix:
    n, k = small_float_shape(parts, WEIGHT, 4, algorithm.group_size)
    parts.check(SCALE, ((n, k // algorithm.group_size),), *FLOAT8)
    parts.check(SECOND, ((), (1,)), "F32")

    def read(divisor: int) -> np.ndarray:
        with np.errstate(over="ignore"):
            scales = parts.finite(SCALE) * parts.finite(SECOND).reshape(())
        return parts.check_finite(scales, SCALE) / np.float32(divisor)

    return small_float_matrix(parts, (WEIGHT, SCALE, SECOND), "NVFP4", (n, k), 4, algorithm.group_size, read)


LAYOUTS: dict[str, Callable[[ModuleParts, Algorithm], StoredMatrix]] = {
    "W4A16_AWQ": _four_bits,
    "W4A16": _four_bits,
    "W8A16": _eight_bits,
    "FP8": _float8,
    "NVFP4": _four_bit_floats,
    "NVFP4_AWQ": _four_bit_floats,
}
"""What makes a matrix of the tensors of each algorithm."""


def _with_inputs(parts: ModuleParts, matrix: StoredMatrix) -> StoredMatrix:
    """Return the matrix with what its inputs are multiplied by in its columns; as it is where these are ones."""
    if not parts.has(INPUT):
        return matrix
    parts.check(INPUT, ((matrix.shape[1],),), *SCALE_TYPES)
    names = (*matrix.parts, parts.name(INPUT))
    if (parts.array(INPUT) == 1).all():
        return dataclasses.replace(matrix, parts=names)

    def read() -> np.ndarray:
        numbers: np.ndarray = matrix.read(None).numpy()
        numbers *= parts.finite(INPUT)
        return numbers

    shape = (matrix.shape[0], matrix.shape[1])
    return matrix_of_numbers(names, shape, matrix.codes_name, read, matrix.restored or SMOOTHED)
