// The memory layout of a PagedAttention tile; plugins/ops.py (tile_bytes) documents it.
#pragma once

#include <cstdint>

namespace ew {

constexpr int kTileTokens = 128;  // tokens of one KV head in one tile
constexpr int kBlockTokens = 16;  // tokens whose keys interleave, so that scores vectorise over tokens

using Half = std::uint16_t;  // the bits of an IEEE half

// Element d of the key in `slot`, in elements from the start of the tile: keys are [128 / 16][head_dim][16].
constexpr std::int64_t key_offset(std::int64_t slot, std::int64_t d, std::int64_t head_dim) {
  return (slot / kBlockTokens * head_dim + d) * kBlockTokens + slot % kBlockTokens;
}

// The first element of the value in `slot`: values are [128][value_dim] after the keys.
constexpr std::int64_t value_offset(std::int64_t slot, std::int64_t head_dim, std::int64_t value_dim) {
  return kTileTokens * head_dim + slot * value_dim;
}

constexpr std::int64_t tile_bytes(std::int64_t head_dim, std::int64_t value_dim, std::int64_t kv_bits) {
  return kTileTokens * (head_dim + value_dim) * kv_bits / 8;
}

}  // namespace ew
