// The two matrix products of attention over one record, straight from its codes. Include simd.h first.
//
// A byte holds 8 / kBits neighbouring codes, so a vector of bytes gives 8 / kBits vectors of codes, in each of which
// neighbours are 8 / kBits elements apart. The results are put in order once per tile, after the products.
#pragma once

#include <utility>

#include "cpu/attention/microkernels.h"

namespace ew {
namespace {

// Codes kFirst, kFirst + 1, ... of each byte of a vector.
template <int kBits, int kFirst, int kParts>
inline void codes_of(Packed bytes, Vec* to) {
  to[0] = code<kBits, kFirst>(bytes);
  if constexpr (kParts > 1) codes_of<kBits, kFirst + 1, kParts - 1>(bytes, to + 1);
}

// The vectors of codes of one vector of bytes, in the order of the elements.
template <int kBits>
inline void in_order(Vec* x) {
  if constexpr (kBits == 4) zip(x[0], x[1]);
  if constexpr (kBits == 2) {
    zip(x[0], x[2]);
    zip(x[1], x[3]);
    zip(x[0], x[1]);
    zip(x[2], x[3]);
  }
}

// The factors of one pass over a tile: kLoads vectors of bytes of each row, and kParts codes of each byte.
template <int kVectors, int kBits>
struct Pass {
  static constexpr int each = 8 / kBits;
  static constexpr int loads = kVectors > each ? kVectors / each : 1;
  static constexpr int parts = kVectors < each ? kVectors : each;
};

// sums[r, i] = start[r] + sum over n of factors[r, n] * codes[n, i] for the elements of kLoads vectors of bytes, as far
// as they are codes kFirst .. kFirst + kParts - 1 of their byte; in the order of the codes.
template <int R, int kBits, int kLoads, int kFirst, int kParts>
void multiply_codes(const float* factors, std::int64_t factor_stride, const float* start, const unsigned char* codes,
                    std::int64_t row_bytes, std::int64_t count, float* sums, std::int64_t sum_stride,
                    const unsigned char* ahead) {
  constexpr int C = kLoads * kParts, each = 8 / kBits;
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = splat(start[r]);
  for (std::int64_t n = 0; n < count; ++n) {
    Vec k[C];
#pragma GCC unroll 8
    for (int l = 0; l < kLoads; ++l)
      codes_of<kBits, kFirst, kParts>(load_packed(codes + n * row_bytes + l * kWidth), k + l * kParts);
    if (kFirst == 0) prefetch(ahead + n * row_bytes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec f = splat(factors[r * factor_stride + n]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = fma(f, k[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      store(sums + r * sum_stride + (c / kParts * each + kFirst + c % kParts) * kWidth, acc[r][c]);
}

// The same for all elements of the rows.
template <int R, int kBits, int kVectors>
void multiply_rows(const float* factors, std::int64_t factor_stride, const float* start, const unsigned char* codes,
                   std::int64_t row_bytes, std::int64_t count, float* sums, std::int64_t sum_stride,
                   const unsigned char* ahead) {
  using P = Pass<kVectors, kBits>;
  std::int64_t byte = 0;
  for (; byte + P::loads * kWidth <= row_bytes; byte += P::loads * kWidth) {
    const auto run = [&](auto kernel) {
      kernel(factors, factor_stride, start, codes + byte, row_bytes, count, sums + byte * P::each, sum_stride,
             ahead + byte);
    };
    run(multiply_codes<R, kBits, P::loads, 0, P::parts>);
    if constexpr (P::parts == 2 && P::each == 4) run(multiply_codes<R, kBits, P::loads, 2, P::parts>);
  }
  if constexpr (P::loads > 1)  // a short row: D is small
    for (; byte < row_bytes; byte += kWidth)
      multiply_codes<R, kBits, 1, 0, P::parts>(factors, factor_stride, start, codes + byte, row_bytes, count,
                                               sums + byte * P::each, sum_stride, ahead + byte);
}

// factors [R, factor_stride]; sums [R, sum_stride], in the order of the codes; `ahead`: the codes of the next tile.
using MultiplyRows = void (*)(const float* factors, std::int64_t factor_stride, const float* start,
                              const unsigned char* codes, std::int64_t row_bytes, std::int64_t count, float* sums,
                              std::int64_t sum_stride, const unsigned char* ahead);

template <int R>
MultiplyRows multiply_rows_of(int bits) {
  constexpr int C = columns(R);
  return bits == 2 ? multiply_rows<R, 2, C> : bits == 4 ? multiply_rows<R, 4, C> : multiply_rows<R, 8, C>;
}

// The kernel for one number of lanes.
template <int... kLess>
MultiplyRows multiply_rows_for(int lanes, int bits, std::integer_sequence<int, kLess...>) {
  static constexpr MultiplyRows (*kOf[])(int) = {multiply_rows_of<kLess + 1>...};
  return kOf[lanes - 1](bits);
}

inline MultiplyRows multiply_rows_for(int lanes, int bits) {
  return multiply_rows_for(lanes, bits, std::make_integer_sequence<int, kMaxLanes>());
}

// Put `size` sums in order, and call use(i, x) for each vector x of elements [i, i + kWidth).
template <int kBits, class Use>
inline void for_ordered(const float* sums, std::int64_t size, Use use) {
  constexpr int each = 8 / kBits;
  for (std::int64_t i = 0; i < size; i += each * kWidth) {
    Vec x[each];
    for (int p = 0; p < each; ++p) x[p] = load(sums + i + p * kWidth);
    in_order<kBits>(x);
    for (int p = 0; p < each; ++p) use(i + p * kWidth, x[p]);
  }
}

template <class Use>
inline void for_ordered(int bits, const float* sums, std::int64_t size, Use use) {
  if (bits == 2)
    for_ordered<2>(sums, size, use);
  else if (bits == 4)
    for_ordered<4>(sums, size, use);
  else
    for_ordered<8>(sums, size, use);
}

}  // namespace
}  // namespace ew
