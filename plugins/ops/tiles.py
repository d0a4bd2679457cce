"""Sizes of a cache tile in tokens and bytes."""

from __future__ import annotations

TILE_TOKENS = 128
"""Tokens of one KV head that one cache tile holds."""


def tile_bytes(head_dim: int, value_dim: int, kv_bits: int) -> int:
    """Bytes of one PagedAttention tile: TILE_TOKENS keys, then TILE_TOKENS values, of one KV head.

    Only kernels read the layout inside, and no file contains it. Keys are [TILE_TOKENS / 16][head_dim][16], so that scores
    vectorise over tokens, without horizontal sums; values are [TILE_TOKENS][value_dim].
    """
    return TILE_TOKENS * (head_dim + value_dim) * kv_bits // 8


def kvarn_tile_bytes(head_dim: int, k_bits: int, v_bits: int) -> int:
    """Bytes of one KVarN record: TILE_TOKENS keys and values of one KV head as `oracles/kvarn.py` lays them out.

    The keys and the values each have their codes, a scale and an offset for each row of their tile, and a scale for each
    column; scales and offsets are float16.
    """
    codes = TILE_TOKENS * head_dim * (k_bits + v_bits) // 8
    return codes + 2 * (2 * head_dim + TILE_TOKENS) + 2 * (head_dim + 2 * TILE_TOKENS)


def kvarn_exact_bytes(head_dim: int) -> int:
    """Bytes of one exact tile of a KVarN cache: TILE_TOKENS keys and values of one KV head in float16."""
    return TILE_TOKENS * 2 * head_dim * 2
