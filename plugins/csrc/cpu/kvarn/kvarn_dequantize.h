// Turns a record into floats, laid out as the microkernels read a tile. Include simd.h first.
#pragma once

#include "cpu/kvarn/code_kernels.h"
#include "cpu/kvarn/kvarn_args.h"

namespace ew {
namespace {

// Call use(i, x) for each vector x of the codes [i, i + kWidth) of a row of packed bytes.
template <int kBits, class Use>
inline void for_codes(const unsigned char* row, std::int64_t count, Use use) {
  constexpr int each = 8 / kBits;
  for (std::int64_t i = 0; i < count; i += each * kWidth) {
    unsigned char part[kWidth] = {};
    const std::int64_t bytes = (count - i) / each;  // a row may be shorter than a vector of bytes
    if (bytes < kWidth)
      for (std::int64_t b = 0; b < bytes; ++b) part[b] = row[i / each + b];
    Vec x[each];
    codes_of<kBits, 0, each>(load_packed(bytes < kWidth ? part : row + i / each), x);
    in_order<kBits>(x);
    for (int p = 0; p < each && i + p * kWidth < count; ++p) use(i + p * kWidth, x[p]);
  }
}

template <int kBits>
void dequantize_keys(const CodedSide& tile, std::int64_t dim, float* keys) {
  for (std::int64_t d = 0; d < dim; ++d) {
    const Vec a = load_one(tile.a + d), b = load_one(tile.b + d);
    for_codes<kBits>(tile.codes + d * kTileTokens * kBits / 8, kTileTokens, [&](std::int64_t t, Vec x) {
      store(keys + key_offset(t, d, dim), fma(x, a, b) * load(tile.c + t));
    });
  }
}

template <int kBits>
void dequantize_values(const CodedSide& tile, std::int64_t dim, float* values) {
  for (std::int64_t t = 0; t < kTileTokens; ++t) {
    const Vec a = load_one(tile.a + t), b = load_one(tile.b + t);
    for_codes<kBits>(tile.codes + t * dim * kBits / 8, dim,
                     [&](std::int64_t d, Vec x) { store(values + t * dim + d, fma(x, a, b) * load(tile.c + d)); });
  }
}

inline void dequantize(const KVarNArgs& a, const Record& record, const TaskScratch& scratch) {
  const auto keys = a.k_bits() == 2 ? dequantize_keys<2> : a.k_bits() == 4 ? dequantize_keys<4> : dequantize_keys<8>;
  const auto values = a.v_bits() == 2   ? dequantize_values<2>
                      : a.v_bits() == 4 ? dequantize_values<4>
                                        : dequantize_values<8>;
  keys(record.keys, a.head_dim, scratch.keys);
  values(record.values, a.head_dim, scratch.values);
}

}  // namespace
}  // namespace ew
