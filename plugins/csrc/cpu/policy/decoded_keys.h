// The keys of a tile of a cache of records, as TokenScores reads them. Include simd.h first.
#pragma once

#include <cmath>

#include "cpu/kvarn/kvarn_dequantize.h"
#include "cpu/policy/token_scores.h"

namespace ew {
namespace {

// keys [kTileTokens / kBlockTokens][dim][kBlockTokens] = H keys, the orthonormal transform along dim; its own inverse.
inline void turn_back(std::int64_t dim, float* keys) {
  const Vec scale = splat(1.0f / std::sqrt(static_cast<float>(dim)));
  for (std::int64_t i = 0; i < dim * kTileTokens; i += kWidth) store(keys + i, load(keys + i) * scale);
  for (float* block = keys; block < keys + dim * kTileTokens; block += dim * kBlockTokens)
    for (std::int64_t half = kBlockTokens; half < dim * kBlockTokens; half *= 2)
      for (std::int64_t pair = 0; pair < dim * kBlockTokens; pair += 2 * half)
        for (std::int64_t i = pair; i < pair + half; i += kWidth) {
          const Vec a = load(block + i), b = load(block + i + half);
          store(block + i, a + b);
          store(block + i + half, a - b);
        }
}

inline void find_keys(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, std::int64_t tile, float* keys) {
  const std::int64_t dim = a.stored.head_dim;
  if (a.is_record(row, head, tile)) {
    const int bits = static_cast<int>(a.k_bits);
    auto* record =
        const_cast<unsigned char*>(a.stored.tiles) + a.stored.tile_ids(row, head)[tile] * a.stored.tile_bytes;
    const auto decode = bits == 2 ? dequantize_keys<2> : bits == 4 ? dequantize_keys<4> : dequantize_keys<8>;
    decode(key_side(record, dim, bits), dim, keys);
  } else {
    const Half* from = a.exact_keys(row, head, tile);
    for (std::int64_t i = 0; i < dim * kTileTokens; i += kWidth) store(keys + i, load(from + i));
  }
  turn_back(dim, keys);
}

}  // namespace
}  // namespace ew
