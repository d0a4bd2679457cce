"""Codes and scales of the types of blocks that an engine can hold as they are: those with one scale a block and no minimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

Split = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class CodeType:
    """A type of blocks, each of a scale in float16 and then codes; CODE_TYPES has them by GGUF's number.

    bits: of a code.
    group_size: numbers in a block.
    split: the codes [blocks, group_size] int8 of bytes [blocks, n] uint8.
    """

    bits: int
    group_size: int
    split: Split

    def read(self, content: bytes, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return codes [n, k] int8 and scales [n, k / group_size] float32 of a matrix; a number is code * scale."""
        rows, columns = shape
        blocks = np.frombuffer(content, np.uint8).reshape(-1, 2 + self.group_size * self.bits // 8)
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        return self.split(blocks[:, 2:]).reshape(rows, columns), scales.reshape(rows, columns // self.group_size)


def _bytes(content: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(content).view(np.int8)


def _halves(content: np.ndarray) -> np.ndarray:
    """Two codes a byte: the low ones are the first half of a block; 8 stands for 0."""
    return np.concatenate([content & 15, content >> 4], axis=1).view(np.int8) - np.int8(8)


CODE_TYPES = {
    int(kind): CodeType(bits=bits, group_size=GGML_QUANT_SIZES[kind][0], split=split)
    for kind, bits, split in (
        (GGMLQuantizationType.Q8_0, 8, _bytes),
        (GGMLQuantizationType.Q4_0, 4, _halves),
    )
}
