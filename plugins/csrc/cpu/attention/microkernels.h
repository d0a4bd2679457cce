// The two matrix products of attention over one tile, register-blocked: lanes x tokens and lanes x value columns.
// Include simd.h first. Elem is float, or Half, which is converted when it is loaded.
#pragma once

#include "cpu/attention/attention_kernels.h"

namespace ew {
namespace {

// Ask for the line that the same loop will want one tile later: tiles are scattered, so no hardware prefetcher can.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

template <class Elem, int kVectors>
inline void prefetch_row(const Elem* p) {
  constexpr int bytes = kVectors * kWidth * static_cast<int>(sizeof(Elem));
#pragma GCC unroll 8
  for (int b = 0; b < bytes; b += 64) prefetch(reinterpret_cast<const char*>(p) + b);
}

// scores[r, t] = sum_d queries[d, r] * keys[t, d] for the columns(R) * kWidth tokens that start at `keys`.
template <int R, class Elem>
void score_step(const float* queries, const Elem* keys, std::int64_t dim, float* scores, const Elem* ahead) {
  constexpr int C = columns(R);
  static_assert(C * kWidth % kBlockTokens == 0 && kTileTokens % (C * kWidth) == 0, "steps are whole blocks of tokens");
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = splat(0.0f);
  for (std::int64_t d = 0; d < dim; ++d) {
    Vec k[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const int token = c * kWidth;
      k[c] = load(keys + (token / kBlockTokens * dim + d) * kBlockTokens + token % kBlockTokens);
    }
    prefetch_row<Elem, C>(ahead + d * C * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec q = splat(queries[d * R + r]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = fma(q, k[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(scores + r * kTileTokens + c * kWidth, acc[r][c]);
}

// sums[r, :] += sum_t weights[r, t] * values[t, :] for C vectors of columns and tokens [begin, end).
// `part` is the number of columns in the vector when it is not a whole one (then C is 1).
template <int R, int C, bool kPart, class Elem>
void weigh_step(const float* weights, const Elem* values, std::int64_t stride, int begin, int end, float* sums,
                std::int64_t sum_stride, int part, const Elem* ahead) {
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = load(sums + r * sum_stride + c * kWidth);
  for (std::int64_t t = begin; t < end; ++t) {
    Vec v[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const Elem* from = values + t * stride + c * kWidth;
      v[c] = kPart ? load_part(from, part) : load(from);
    }
    prefetch_row<Elem, C>(ahead + t * stride);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Vec w = splat(weights[r * kTileTokens + t]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = fma(w, v[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(sums + r * sum_stride + c * kWidth, acc[r][c]);
}

// The tokens [*begin, *end) for which scores were written: the wanted ones, rounded out to whole steps.
template <int R, class Elem>
void score_tile(const float* queries, const Elem* keys, std::int64_t dim, int* begin, int* end, float* scores,
                const Elem* ahead) {
  constexpr int step = columns(R) * kWidth;
  *begin = *begin / step * step;
  *end = (*end + step - 1) / step * step;
  for (int t = *begin; t < *end; t += step)
    score_step<R, Elem>(queries, keys + t * dim, dim, scores + t, ahead + t * dim);
}

template <int R, class Elem>
void weigh_tile(const float* weights, const Elem* values, std::int64_t dim, int begin, int end, float* sums,
                std::int64_t sum_stride, const Elem* ahead) {
  constexpr int C = columns(R) < 4 ? columns(R) : 4;  // a value of 64 is four AVX-512 vectors
  std::int64_t col = 0;
  for (; col + C * kWidth <= dim; col += C * kWidth)
    weigh_step<R, C, false>(weights, values + col, dim, begin, end, sums + col, sum_stride, 0, ahead + col);
  for (; col + kWidth <= dim; col += kWidth)
    weigh_step<R, 1, false>(weights, values + col, dim, begin, end, sums + col, sum_stride, 0, ahead + col);
  if (col < dim)
    weigh_step<R, 1, true>(weights, values + col, dim, begin, end, sums + col, sum_stride, static_cast<int>(dim - col),
                           ahead + col);
}

// The microkernels for one number of lanes.
template <class Elem>
struct TileKernels {
  void (*score)(const float*, const Elem*, std::int64_t, int*, int*, float*, const Elem*);
  void (*weigh)(const float*, const Elem*, std::int64_t, int, int, float*, std::int64_t, const Elem*);
};

template <class Elem>
TileKernels<Elem> tile_kernels(int lanes) {
  switch (lanes) {
    case 1:
      return {score_tile<1, Elem>, weigh_tile<1, Elem>};
    case 2:
      return {score_tile<2, Elem>, weigh_tile<2, Elem>};
    case 3:
      return {score_tile<3, Elem>, weigh_tile<3, Elem>};
    case 4:
      return {score_tile<4, Elem>, weigh_tile<4, Elem>};
  }
  if constexpr (kMaxLanes == 8) {
    switch (lanes) {
      case 5:
        return {score_tile<5, Elem>, weigh_tile<5, Elem>};
      case 6:
        return {score_tile<6, Elem>, weigh_tile<6, Elem>};
      case 7:
        return {score_tile<7, Elem>, weigh_tile<7, Elem>};
      case 8:
        return {score_tile<8, Elem>, weigh_tile<8, Elem>};
    }
  }
  return {nullptr, nullptr};
}

}  // namespace
}  // namespace ew
