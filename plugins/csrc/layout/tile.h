// The memory layout of a tile: the keys and values of kTileTokens tokens of one KV head.
//
//   keys    [kTileTokens / kBlockTokens][head_dim][kBlockTokens]
//   values  [kTileTokens][value_dim]
//
// Sixteen tokens' keys interleave so that scores vectorise over tokens. CPU and GPU use the same layout; no file
// contains tiles, so it may change (plugins/ops: tile_bytes).
#pragma once

#include <cstdint>

// The layout's functions serve CPU code, launchers and kernels. They are inlined everywhere: an object compiled for one
// instruction set must not offer its copy to the others.
#ifdef __CUDACC__
#define EW_LAYOUT __host__ __device__ __forceinline__
#else
#define EW_LAYOUT inline __attribute__((always_inline))
#endif

namespace ew {

constexpr int kTileTokens = 128;  // plugins/ops: TILE_TOKENS
constexpr int kBlockTokens = 16;  // tokens whose keys interleave

using Half = std::uint16_t;  // the bits of an IEEE half

// Offsets in elements from the start of a tile, and sizes, in the integer type of the arguments: kernels count in 32
// bits.

// Element d of the key in `slot`.
template <class Slot, class Channel, class Size>
EW_LAYOUT constexpr auto key_offset(Slot slot, Channel d, Size head_dim) {
  return (slot / kBlockTokens * head_dim + d) * kBlockTokens + slot % kBlockTokens;
}

// The first element of the value in `slot`.
template <class Slot, class Size>
EW_LAYOUT constexpr auto value_offset(Slot slot, Size head_dim, Size value_dim) {
  return kTileTokens * head_dim + slot * value_dim;
}

constexpr std::int64_t tile_bytes(std::int64_t head_dim, std::int64_t value_dim, std::int64_t kv_bits) {
  return kTileTokens * (head_dim + value_dim) * kv_bits / 8;
}

}  // namespace ew
