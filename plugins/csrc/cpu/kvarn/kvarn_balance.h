// KVarN's normaliser for one tile of floats in memory. Include simd.h first.
#pragma once

#include <cmath>

#include "cpu/kvarn/kvarn_kernels.h"

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
  float *column_means, *column_sums, *column_squares;  // of x * row_factor; the sums are of what differs from the means

  BalancedTile(float* memory, std::int64_t row_count, std::int64_t column_count)
      : rows(row_count), columns(column_count) {
    const auto take = [&memory](std::int64_t count) { return (memory += count) - count; };
    x = take(rows * columns);
    for (float** vector :
         {&column_scale, &column_factor, &next_columns, &column_stds, &column_means, &column_sums, &column_squares})
      *vector = take(columns);
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

// Sets row_stds[begin, begin + kWidth): of x * column_factor. Rows go together so that their chains of additions
// overlap.
inline void row_deviations(const BalancedTile& t, std::int64_t begin) {
  constexpr int kRows = 4;
  const float share = 1.0f / static_cast<float>(t.columns), unbiased = 1.0f / static_cast<float>(t.columns - 1);
  for (std::int64_t r = begin; r < begin + kWidth; r += kRows) {
    const float* x = t.x + r * t.columns;
    Vec total[kRows], squares[kRows];
    for (int i = 0; i < kRows; ++i) total[i] = squares[i] = splat(0.0f);
    for (std::int64_t c = 0; c < t.columns; c += kWidth) {
      const Vec f = load(t.column_factor + c);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) total[i] = fma(load(x + i * t.columns + c), f, total[i]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) total[i] = splat(-sum(total[i]) * share);
    for (std::int64_t c = 0; c < t.columns; c += kWidth) {
      const Vec f = load(t.column_factor + c);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const Vec d = fma(load(x + i * t.columns + c), f, total[i]);
        squares[i] = fma(d, d, squares[i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) t.row_stds[r + i] = sum(squares[i]) * unbiased;
  }
  store(t.row_stds + begin, sqrt(load(t.row_stds + begin)));
}

// Adds rows [begin, end) to the columns' sums, for kVectors vectors of columns from `column` on.
template <int kVectors>
inline void add_rows_step(const BalancedTile& t, std::int64_t begin, std::int64_t end, std::int64_t column) {
  Vec mean[kVectors], total[kVectors], squares[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    mean[v] = load(t.column_means + column + v * kWidth);
    total[v] = load(t.column_sums + column + v * kWidth);
    squares[v] = load(t.column_squares + column + v * kWidth);
  }
  for (std::int64_t r = begin; r < end; ++r) {
    const Vec f = splat(t.row_factor[r]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vec d = load(t.x + r * t.columns + column + v * kWidth) * f - mean[v];
      total[v] = total[v] + d;
      squares[v] = fma(d, d, squares[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store(t.column_sums + column + v * kWidth, total[v]);
    store(t.column_squares + column + v * kWidth, squares[v]);
  }
}

inline void add_rows(const BalancedTile& t, std::int64_t begin, std::int64_t end) {
  std::int64_t c = 0;
  for (; c + 4 * kWidth <= t.columns; c += 4 * kWidth) add_rows_step<4>(t, begin, end, c);
  for (; c < t.columns; c += kWidth) add_rows_step<1>(t, begin, end, c);
}

inline void begin_columns(const BalancedTile& t) {
  fill(t.column_sums, t.columns, 0.0f);
  fill(t.column_squares, t.columns, 0.0f);
}

// Sets column_stds, of x * row_factor * column_factor, and column_means from the sums over all rows. The sums are of
// differences from the means before, so that next to nothing cancels once those are near.
inline void end_columns(const BalancedTile& t) {
  const Vec share = splat(1.0f / static_cast<float>(t.rows)), unbiased = splat(1.0f / static_cast<float>(t.rows - 1));
  for (std::int64_t c = 0; c < t.columns; c += kWidth) {
    const Vec total = load(t.column_sums + c), offset = total * share;
    const Vec squares = max(load(t.column_squares + c) - total * offset, splat(0.0f));
    store(t.column_means + c, load(t.column_means + c) + offset);
    store(t.column_stds + c, sqrt(squares * unbiased) * load(t.column_factor + c));
  }
}

// The columns' deviations when their means are not known: once over the rows for those.
inline void column_deviations(const BalancedTile& t) {
  for (bool known : {false, true}) {
    if (!known) fill(t.column_means, t.columns, 0.0f);
    begin_columns(t);
    add_rows(t, 0, t.rows);
    end_columns(t);
  }
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
// after they are scaled; while they are near, they are added to the columns' sums. `first`: the rows' scales still move
// so far that the columns' means before say little.
inline void scale_rows(const BalancedTile& t, bool first) {
  begin_columns(t);
  for (std::int64_t r = 0; r < t.rows; r += kWidth) {
    row_deviations(t, r);
    const Vec unscaled = load(t.row_stds + r);
    const Vec scale = grown(load(t.next_rows + r), unscaled * load(t.row_factor + r));
    store(t.next_rows + r, scale);
    store(t.row_factor + r, splat(1.0f) / scale);
    store(t.row_stds + r, unscaled / scale);
    if (!first) add_rows(t, r, r + kWidth);
  }
  if (first)
    column_deviations(t);
  else
    end_columns(t);
}

// Sets column_scale, column_factor and row_scale. The columns' deviations of an iterate, which its imbalance needs, are
// those that the next iteration begins with.
inline void balance(const BalancedTile& t, std::int64_t iterations) {
  fill(t.next_columns, t.columns, 1.0f);
  fill(t.column_scale, t.columns, 1.0f);
  fill(t.column_factor, t.columns, 1.0f);
  for (float* rows : {t.next_rows, t.row_scale, t.row_factor}) fill(rows, t.rows, 1.0f);
  if (iterations > 0) {
    for (std::int64_t r = 0; r < t.rows; r += kWidth) row_deviations(t, r);
    column_deviations(t);
  }
  float best = iterations > 0 ? spread(t.column_stds, t.columns) + spread(t.row_stds, t.rows) : 0.0f;
  for (std::int64_t i = 0; i < iterations; ++i) {
    scale_columns(t);
    scale_rows(t, i == 0);
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
