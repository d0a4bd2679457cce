// Rotates new keys and values and stores them in the exact tiles of a KVarN cache. Include simd.h first.
#pragma once

#include "cpu/attention/write_tokens.h"
#include "cpu/kvarn/hadamard.h"
#include "cpu/kvarn/kvarn_kernels.h"

namespace ew {
namespace {

// Tokens [begin, begin + count) of the row's new ones.
inline void write_exact_tokens(const KVarNArgs& a, std::int64_t row, std::int64_t head, std::int64_t begin,
                               std::int64_t count) {
  const std::int64_t dim = a.head_dim;
  float turned[kMaxHeadDim];
  for (std::int64_t i = begin; i < begin + count; ++i) {
    const std::int64_t index = a.held(row, head) + i, slot = index % kTileTokens;
    const std::int64_t source = ((a.starts[row] + i) * a.kv_heads + head) * dim;
    Half* tile = a.exact_tile(row, head, index / kTileTokens);
    hadamard(a.key + source, dim, 1.0f, turned);
    put_key(tile, slot, turned, dim);
    if (a.attributes.rotate_values) hadamard(a.value + source, dim, 1.0f, turned);
    put_value(tile + value_offset(slot, dim, dim), a.attributes.rotate_values ? turned : a.value + source, dim);
  }
}

}  // namespace
}  // namespace ew
