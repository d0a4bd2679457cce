"""Sizes of a cache tile, in tokens and bytes."""

from __future__ import annotations

TILE_TOKENS = 128
"""Tokens of one KV head that one cache tile holds."""


def tile_bytes(head_dim: int, value_dim: int, kv_bits: int) -> int:
    """Bytes of one PagedAttention tile: TILE_TOKENS keys, then TILE_TOKENS values, of one KV head.

    Inside it is the kernels' own affair, and nothing persists it. On the CPU keys are [TILE_TOKENS / 16][head_dim][16]
    (scores vectorise over tokens, without horizontal sums) and values [TILE_TOKENS][value_dim].
    """
    return TILE_TOKENS * (head_dim + value_dim) * kv_bits // 8


def kvarn_tile_bytes(head_dim: int, k_bits: int, v_bits: int) -> int:
    """Bytes of one KVarN record: TILE_TOKENS keys and values of one KV head as `oracles/kvarn.py` lays them out.

    A side has its codes, a scale and an offset (float16) for each row of its tile, and a scale for each column.
    """
    codes = TILE_TOKENS * head_dim * (k_bits + v_bits) // 8
    return codes + 2 * (2 * head_dim + TILE_TOKENS) + 2 * (head_dim + 2 * TILE_TOKENS)


def kvarn_exact_bytes(head_dim: int) -> int:
    """Bytes of one exact tile of a KVarN cache: TILE_TOKENS keys and values of one KV head as halves."""
    return TILE_TOKENS * 2 * head_dim * 2
