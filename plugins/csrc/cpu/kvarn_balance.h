// KVarN's normaliser for one tile of floats in memory. Include a simd_*.h first.
#pragma once

#include <cmath>

#include "kernels.h"

namespace ew {
namespace {

constexpr float kSmallestStd = 1e-3f, kLargestStd = 1e3f;
constexpr float kSmallestScale = 0.74081822f, kLargestScale = 22026.4658f;  // e^-0.3, e^10

// A tile x [rows, columns] as something of even standard deviations * row_scale * column_scale. Both sizes are
// multiples of kWidth. The vectors hold what balance() leaves: the best scales, and the columns' reciprocals.
struct BalancedTile {
  std::int64_t rows, columns;
  float* x;
  float *column_scale, *column_factor, *row_scale;
  float *next_columns, *next_rows, *column_stds, *row_stds, *row_factor;  // of the iteration under way

  BalancedTile(float* memory, std::int64_t row_count, std::int64_t column_count)
      : rows(row_count), columns(column_count) {
    const auto take = [&memory](std::int64_t count) { return (memory += count) - count; };
    x = take(rows * columns);
    for (float** vector : {&column_scale, &column_factor, &next_columns, &column_stds}) *vector = take(columns);
    for (float** vector : {&row_scale, &next_rows, &row_stds, &row_factor}) *vector = take(rows);
  }
};

inline void fill(float* x, std::int64_t size, float value) {
  for (std::int64_t i = 0; i < size; i += kWidth) store(x + i, splat(value));
}

inline void copy_floats(const float* x, std::int64_t size, float* to) {
  for (std::int64_t i = 0; i < size; i += kWidth) store(to + i, load(x + i));
}

inline Vec clip(Vec x, float low, float high) { return min(max(x, splat(low)), splat(high)); }

// stds[r]: standard deviation of x[r, :] * factor. Rows go together so that their chains of additions overlap.
inline void row_deviations(const BalancedTile& t, const float* factor, float* stds) {
  constexpr int kRows = 4;
  const float share = 1.0f / static_cast<float>(t.columns), unbiased = 1.0f / static_cast<float>(t.columns - 1);
  for (std::int64_t r = 0; r < t.rows; r += kRows) {
    const float* x = t.x + r * t.columns;
    Vec total[kRows], squares[kRows];
    for (int i = 0; i < kRows; ++i) total[i] = squares[i] = splat(0.0f);
    for (std::int64_t c = 0; c < t.columns; c += kWidth) {
      const Vec f = load(factor + c);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) total[i] = fma(load(x + i * t.columns + c), f, total[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) total[i] = splat(-sum(total[i]) * share);
    for (std::int64_t c = 0; c < t.columns; c += kWidth) {
      const Vec f = load(factor + c);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const Vec d = fma(load(x + i * t.columns + c), f, total[i]);
        squares[i] = fma(d, d, squares[i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) stds[r + i] = sum(squares[i]) * unbiased;
  }
  for (std::int64_t r = 0; r < t.rows; r += kWidth) store(stds + r, sqrt(load(stds + r)));
}

// stds[c]: standard deviation of x[:, c] * factor, for kVectors vectors of columns.
template <int kVectors>
inline void column_deviations_step(const BalancedTile& t, const float* x, const float* factor, float* stds) {
  Vec total[kVectors], squares[kVectors];
  for (int v = 0; v < kVectors; ++v) total[v] = squares[v] = splat(0.0f);
  for (std::int64_t r = 0; r < t.rows; ++r) {
    const Vec f = splat(factor[r]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) total[v] = fma(load(x + r * t.columns + v * kWidth), f, total[v]);
  }
  for (int v = 0; v < kVectors; ++v) total[v] = total[v] * splat(-1.0f / static_cast<float>(t.rows));
  for (std::int64_t r = 0; r < t.rows; ++r) {
    const Vec f = splat(factor[r]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Vec d = fma(load(x + r * t.columns + v * kWidth), f, total[v]);
      squares[v] = fma(d, d, squares[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v)
    store(stds + v * kWidth, sqrt(squares[v] * splat(1.0f / static_cast<float>(t.rows - 1))));
}

inline void column_deviations(const BalancedTile& t, const float* factor, float* stds) {
  std::int64_t c = 0;
  for (; c + 4 * kWidth <= t.columns; c += 4 * kWidth) column_deviations_step<4>(t, t.x + c, factor, stds + c);
  for (; c < t.columns; c += kWidth) column_deviations_step<1>(t, t.x + c, factor, stds + c);
}

// Largest over smallest.
inline float spread(const float* stds, std::int64_t size) {
  Vec high = load(stds), low = high;
  for (std::int64_t i = kWidth; i < size; i += kWidth) {
    high = max(load(stds + i), high);
    low = min(load(stds + i), low);
  }
  const float lowest = -largest(splat(0.0f) - low);
  return largest(high) / (lowest > 1e-8f ? lowest : 1e-8f);
}

// A scale grows by the deviation that it left. The product of clipped numbers is what the sum of clipped logarithms
// stands for.
inline Vec grown(Vec scale, Vec deviation) {
  return clip(scale * clip(deviation, kSmallestStd, kLargestStd), kSmallestScale, kLargestScale);
}

inline void scale_columns(const BalancedTile& t) {
  for (std::int64_t c = 0; c < t.columns; c += kWidth) {
    const Vec scale = grown(load(t.next_columns + c), load(t.column_stds + c));
    store(t.next_columns + c, scale);
    store(t.column_factor + c, splat(1.0f) / scale);
  }
}

// Leaves the deviations of the new iterate. A row's follows its own scale, so one look at the rows gives it before and
// after they are scaled.
inline void scale_rows(const BalancedTile& t) {
  row_deviations(t, t.column_factor, t.row_stds);
  for (std::int64_t r = 0; r < t.rows; r += kWidth) {
    const Vec unscaled = load(t.row_stds + r);
    const Vec scale = grown(load(t.next_rows + r), unscaled * load(t.row_factor + r));
    store(t.next_rows + r, scale);
    store(t.row_factor + r, splat(1.0f) / scale);
    store(t.row_stds + r, unscaled / scale);
  }
  column_deviations(t, t.row_factor, t.column_stds);
  for (std::int64_t c = 0; c < t.columns; c += kWidth)
    store(t.column_stds + c, load(t.column_stds + c) * load(t.column_factor + c));
}

// Sets column_scale, column_factor and row_scale. The columns' deviations of an iterate, which its imbalance needs, are
// those that the next iteration begins with.
inline void balance(const BalancedTile& t, std::int64_t iterations) {
  fill(t.next_columns, t.columns, 1.0f);
  fill(t.column_scale, t.columns, 1.0f);
  fill(t.column_factor, t.columns, 1.0f);
  for (float* rows : {t.next_rows, t.row_scale, t.row_factor}) fill(rows, t.rows, 1.0f);
  if (iterations > 0) {
    row_deviations(t, t.column_factor, t.row_stds);
    column_deviations(t, t.row_factor, t.column_stds);
  }
  float best = iterations > 0 ? spread(t.column_stds, t.columns) + spread(t.row_stds, t.rows) : 0.0f;
  for (std::int64_t i = 0; i < iterations; ++i) {
    scale_columns(t);
    scale_rows(t);
    const float imbalance = spread(t.column_stds, t.columns) + spread(t.row_stds, t.rows);
    if (!(imbalance <= best)) continue;
    best = imbalance;
    copy_floats(t.next_columns, t.columns, t.column_scale);
    copy_floats(t.next_rows, t.rows, t.row_scale);
  }
  for (std::int64_t c = 0; c < t.columns; c += kWidth)
    store(t.column_factor + c, splat(1.0f) / load(t.column_scale + c));
}

}  // namespace
}  // namespace ew
