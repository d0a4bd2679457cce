"""Packs the codes of quantised matrices, int8 [n, k] in two's complement, as checkpoints store them."""

from __future__ import annotations

import numpy as np


def pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack each row of codes[n, k] as one stream of bits, in words: int32 [n, ceil(k * bits / 32)].

    code + 2^(bits - 1) of column j begins at bit j * bits, lowest bit first. The rest of the last word is 0. A code whose
    number of bits divides 32 never crosses a word.

    Source: compressed-tensors' format pack-quantized (github.com/vllm-project/compressed-tensors).
    """
    n, k = codes.shape
    words = -(-k * bits // 32)
    unsigned = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    if bits == 8:
        stream = unsigned
    elif bits == 4:
        even = np.zeros((n, k + k % 2), np.uint8)
        even[:, :k] = unsigned
        stream = even[:, 0::2] | (even[:, 1::2] << 4)
    else:
        single = np.unpackbits(unsigned[..., None], axis=-1, count=bits, bitorder="little")
        stream = np.packbits(single.reshape(n, k * bits), axis=-1, bitorder="little")
    padded = np.zeros((n, words * 4), np.uint8)
    padded[:, : stream.shape[1]] = stream
    return padded.view("<i4")


def pack_output_pairs(codes: np.ndarray) -> np.ndarray:
    """Pack two rows of codes[n, k] from -8 to 7 into one: uint8 [n / 2, k], two's complement, even rows in the low nibbles.

    Source: ModelOpt's unified checkpoint, as TensorRT-LLM reads it (github.com/NVIDIA/TensorRT-Model-Optimizer).
    """
    nibbles = codes.astype(np.uint8) & 15
    packed: np.ndarray = nibbles[0::2] | (nibbles[1::2] << 4)
    return packed
