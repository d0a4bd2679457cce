// Writes new keys and values into their tiles. Include simd.h first.
#pragma once

#include "cpu/attention/attention_kernels.h"

namespace ew {
namespace {

// Halves saturate: an infinity in a cache would turn later scores into NaN. NaN itself is kept.
inline void put(Half* to, Vec x, int n) { store_half_part(to, min(splat(65504.0f), max(splat(-65504.0f), x)), n); }
inline void put(float* to, Vec x, int n) { store_part(to, x, n); }

// The key of one slot of a tile.
template <class Elem>
inline void put_key(Elem* tile, std::int64_t slot, const float* from, std::int64_t dim) {
  Elem* key = tile + key_offset(slot, 0, dim);
  for (std::int64_t d = 0; d < dim; d += kWidth) {
    const int n = static_cast<int>(dim - d < kWidth ? dim - d : kWidth);
    Elem row_part[kWidth];
    put(row_part, load_part(from + d, n), n);
    for (int j = 0; j < n; ++j) key[(d + j) * kBlockTokens] = row_part[j];
  }
}

// A value, to where the slot's begins.
template <class Elem>
inline void put_value(Elem* value, const float* from, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; d += kWidth) {
    const int n = static_cast<int>(dim - d < kWidth ? dim - d : kWidth);
    put(value + d, load_part(from + d, n), n);
  }
}

template <class Elem>
void write_tokens_as(const AttentionArgs& a, std::int64_t row, std::int64_t head, std::int64_t begin,
                     std::int64_t count) {
  const std::int64_t bytes = tile_bytes(a.head_dim, a.value_dim, a.kv_bits);
  const std::int32_t* ids = a.tile_ids(row, head);
  for (std::int64_t i = begin; i < begin + count; ++i) {
    const std::int64_t index = a.held(row, head) + i, slot = index % kTileTokens;
    const std::int64_t source = (a.starts[row] + i) * a.kv_heads + head;
    Elem* tile = reinterpret_cast<Elem*>(a.tiles + ids[index / kTileTokens] * bytes);
    put_key(tile, slot, a.key + source * a.head_dim, a.head_dim);
    put_value(tile + value_offset(slot, a.head_dim, a.value_dim), a.value + source * a.value_dim, a.value_dim);
  }
}

inline void write_tokens(const AttentionArgs& a, std::int64_t row, std::int64_t head, std::int64_t begin,
                         std::int64_t count) {
  if (a.kv_bits == 32)
    write_tokens_as<float>(a, row, head, begin, count);
  else
    write_tokens_as<Half>(a, row, head, begin, count);
}

}  // namespace
}  // namespace ew
