"""The types of GGUF's tensors: blocks of codes and their numbers, decoded by the library `gguf`, a piece at a time."""

from __future__ import annotations

import functools
import math

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

_DECODED_AT_ONCE = 1 << 17  # numbers in whole blocks of any type; the library holds them several times
PLAIN = ("F32", "F16", "BF16")  # of one number a block; they have the same names in safetensors


def type_name(kind: int) -> str:
    """The name of the type that a file gives the number `kind`."""
    return GGMLQuantizationType(kind).name if kind in set(GGMLQuantizationType) else f"of number {kind}"


def block_of(kind: int) -> tuple[int, int] | None:
    """The numbers and the bytes of a block; None for an unknown type."""
    return GGML_QUANT_SIZES[GGMLQuantizationType(kind)] if kind in set(GGMLQuantizationType) else None


@functools.cache
def decodable() -> tuple[str, ...]:
    """The names of the types that `decode` takes, in the order of their numbers."""
    return tuple(kind.name for kind in GGMLQuantizationType if _decodes(kind))


def refusal_of(kind: int) -> str:
    """The reason why `decode` does not take a type, as "expected one of ..."; empty where it does."""
    return "" if type_name(kind) in decodable() else f"expected one of {', '.join(decodable())}"


def decode(content: bytes, kind: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the numbers of a tensor, float32 of the given shape.

    content: the tensor's blocks; each row, along the last axis, has whole ones.
    """
    elements, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    blocks = np.frombuffer(content, np.uint8)
    numbers = np.empty(math.prod(shape), np.float32)
    for begin in range(0, len(numbers), _DECODED_AT_ONCE):
        end = min(begin + _DECODED_AT_ONCE, len(numbers))
        part = blocks[begin // elements * width : end // elements * width]
        numbers[begin:end] = dequantize(part, GGMLQuantizationType(kind))
    return numbers.reshape(shape)


def _decodes(kind: GGMLQuantizationType) -> bool:
    """Whether the library decodes a type; it says so by an error alone."""
    try:
        dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return True
