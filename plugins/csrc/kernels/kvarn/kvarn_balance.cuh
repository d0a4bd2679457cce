// KVarN's normaliser: a tile of floats in the registers of a block, its scales in shared memory.
//
// Each thread holds 64 elements for all rounds: the rows are divided among the warps, and lane l has columns l kEach,
// l kEach + 1, ... of its warp's rows. So a row's sums are shuffles inside a warp, and a column's sums are one sum for
// each warp, added through shared memory in the order of the warps: without atomics, with the same bits every time.
// Shared memory: struct BalanceMemory, 40 KB at most (head size 256). Any architecture.
//
// The algorithm and its numbers are those of csrc/cpu/kvarn/kvarn_balance.h: scales instead of their logarithms,
// clipped; a row's deviation follows its own scale; the columns' means of the round before make one pass over them
// enough.
#pragma once

#include "kernels/device/device.cuh"

namespace ew {

constexpr int kBalanceElements = 64;  // that a thread holds
constexpr float kSmallestStd = 1e-3f, kLargestStd = 1e3f;
constexpr float kSmallestScale = 0.74081822f, kLargestScale = 22026.4658f;  // e^-0.3, e^10

// The distribution of a tile [kRowCount, kColumnCount] over a block's threads.
template <int kRowCount, int kColumnCount>
struct TileShape {
  static constexpr int rows = kRowCount, columns = kColumnCount;
  static constexpr int threads = rows * columns / kBalanceElements, warps = threads / kWarp;
  static constexpr int warp_rows = rows / warps, each = columns / kWarp;  // a lane's elements: [warp_rows][each]
  static constexpr int batch = threads > 256 ? 2 : 8;  // rows reduced together; 512 threads have 128 registers
  static constexpr int row_lanes = kWarp / batch;      // lanes that get the same row's result
  static_assert(warp_rows * each == kBalanceElements && warp_rows % batch == 0, "whole rows, whole batches");
};

template <class Shape>
struct BalanceMemory {
  float column_scale[Shape::columns], next_columns[Shape::columns], column_factor[Shape::columns];
  float column_stds[Shape::columns], column_means[Shape::columns];  // means: of x * row_factor
  float row_scale[Shape::rows], next_rows[Shape::rows], row_factor[Shape::rows], row_stds[Shape::rows];
  float sums[Shape::warps][Shape::columns], squares[Shape::warps][Shape::columns];
};

template <class Shape>
using TileElements = float[Shape::warp_rows][Shape::each];

EW_DEVICE float larger(float a, float b) { return a > b ? a : b; }
EW_DEVICE float smaller(float a, float b) { return a < b ? a : b; }
EW_DEVICE float clip(float x, float low, float high) { return smaller(larger(x, low), high); }

struct Sum {
  EW_DEVICE float operator()(float a, float b) const { return a + b; }
};
struct Largest {
  EW_DEVICE float operator()(float a, float b) const { return larger(a, b); }
};

// Joins each x[i] over the lanes; lane l gets number l / (32 / kCount). Lanes give away the half that others end with,
// so kCount numbers take about kCount shuffles, not five each.
template <int kCount, class Join>
EW_DEVICE float join_each(const float (&x)[kCount], Join join, int mask = kWarp / 2) {
  if constexpr (kCount == 1) {
    float joined = x[0];
    for (; mask > 0; mask /= 2) joined = join(joined, shuffle_xor(joined, mask));
    return joined;
  } else {
    const bool is_upper = (lane_index() & mask) != 0;
    float half[kCount / 2];
    EW_UNROLL
    for (int i = 0; i < kCount / 2; ++i) {
      const float low = x[i], high = x[i + kCount / 2];
      half[i] = join(is_upper ? high : low, shuffle_xor(is_upper ? low : high, mask));
    }
    return join_each(half, join, mask / 2);
  }
}

template <class Shape>
EW_DEVICE void load_lane_columns(const float* from, float (&to)[Shape::each]) {
  EW_UNROLL
  for (int j = 0; j < Shape::each; ++j) to[j] = from[lane_index() * Shape::each + j];
}

// Sets the row_stds of the warp's rows: of x * column_factor.
template <class Shape>
EW_DEVICE void set_row_stds(const TileElements<Shape>& x, BalanceMemory<Shape>& m) {
  constexpr float kShare = 1.0f / Shape::columns, kUnbiased = 1.0f / (Shape::columns - 1);
  float factor[Shape::each];
  load_lane_columns<Shape>(m.column_factor, factor);
  EW_UNROLL
  for (int first = 0; first < Shape::warp_rows; first += Shape::batch) {
    float total[Shape::batch], squares[Shape::batch];
    EW_UNROLL
    for (int i = 0; i < Shape::batch; ++i) {
      total[i] = 0.0f;
      EW_UNROLL
      for (int j = 0; j < Shape::each; ++j) total[i] += x[first + i][j] * factor[j];
    }
    const float mean = join_each(total, Sum()) * kShare;
    EW_UNROLL
    for (int i = 0; i < Shape::batch; ++i) {
      const float its_mean = shuffle(mean, i * Shape::row_lanes);
      squares[i] = 0.0f;
      EW_UNROLL
      for (int j = 0; j < Shape::each; ++j) {
        const float d = x[first + i][j] * factor[j] - its_mean;
        squares[i] += d * d;
      }
    }
    const float deviation = square_root(join_each(squares, Sum()) * kUnbiased);
    if (lane_index() % Shape::row_lanes == 0)
      m.row_stds[warp_index() * Shape::warp_rows + first + lane_index() / Shape::row_lanes] = deviation;
  }
  sync_warp();
}

// Sets column_stds, of x * row_factor * column_factor, and column_means. The sums are of differences from the means
// before, so that next to nothing cancels once those are near.
template <class Shape>
EW_DEVICE void set_column_stds(const TileElements<Shape>& x, BalanceMemory<Shape>& m) {
  float mean[Shape::each], total[Shape::each] = {}, squares[Shape::each] = {};
  load_lane_columns<Shape>(m.column_means, mean);
  EW_UNROLL
  for (int r = 0; r < Shape::warp_rows; ++r) {
    const float factor = m.row_factor[warp_index() * Shape::warp_rows + r];
    EW_UNROLL
    for (int j = 0; j < Shape::each; ++j) {
      const float d = x[r][j] * factor - mean[j];
      total[j] += d;
      squares[j] += d * d;
    }
  }
  EW_UNROLL
  for (int j = 0; j < Shape::each; ++j) {
    m.sums[warp_index()][lane_index() * Shape::each + j] = total[j];
    m.squares[warp_index()][lane_index() * Shape::each + j] = squares[j];
  }
  sync_block();
  for (int c = thread_index(); c < Shape::columns; c += Shape::threads) {
    float sum = 0.0f, square = 0.0f;
    for (int w = 0; w < Shape::warps; ++w) {
      sum += m.sums[w][c];
      square += m.squares[w][c];
    }
    const float offset = sum * (1.0f / Shape::rows);
    const float variance = larger(square - sum * offset, 0.0f) * (1.0f / (Shape::rows - 1));
    m.column_means[c] += offset;
    m.column_stds[c] = square_root(variance) * m.column_factor[c];
  }
  sync_block();
}

// Largest over smallest; every warp finds it by itself.
EW_DEVICE float spread(const float* stds, int size) {
  float high = stds[lane_index()], low = high;
  for (int i = lane_index() + kWarp; i < size; i += kWarp) {
    high = larger(high, stds[i]);
    low = smaller(low, stds[i]);
  }
  return warp_max(high) / larger(-warp_max(-low), 1e-8f);
}

template <class Shape>
EW_DEVICE float imbalance(const BalanceMemory<Shape>& m) {
  return spread(m.column_stds, Shape::columns) + spread(m.row_stds, Shape::rows);
}

// A scale grows by the deviation that it left. The product of clipped numbers is what the sum of clipped logarithms
// stands for.
EW_DEVICE float grown(float scale, float deviation) {
  return clip(scale * clip(deviation, kSmallestStd, kLargestStd), kSmallestScale, kLargestScale);
}

template <class Shape>
EW_DEVICE void scale_columns(BalanceMemory<Shape>& m) {
  for (int c = thread_index(); c < Shape::columns; c += Shape::threads) {
    m.next_columns[c] = grown(m.next_columns[c], m.column_stds[c]);
    m.column_factor[c] = 1.0f / m.next_columns[c];
  }
  sync_block();
}

// The rows of this warp.
template <class Shape, class Body>
EW_DEVICE void for_warp_rows(Body body) {
  const int begin = warp_index() * Shape::warp_rows;
  for (int r = begin + lane_index(); r < begin + Shape::warp_rows; r += kWarp) body(r);
  sync_warp();
}

template <class Shape>
EW_DEVICE void scale_rows(const TileElements<Shape>& x, BalanceMemory<Shape>& m) {
  set_row_stds<Shape>(x, m);
  for_warp_rows<Shape>([&m](int r) {
    const float unscaled = m.row_stds[r], scale = grown(m.next_rows[r], unscaled * m.row_factor[r]);
    m.next_rows[r] = scale;
    m.row_factor[r] = 1.0f / scale;
    m.row_stds[r] = unscaled / scale;
  });
}

template <class Shape>
EW_DEVICE void keep_scales(BalanceMemory<Shape>& m) {
  for (int c = thread_index(); c < Shape::columns; c += Shape::threads) m.column_scale[c] = m.next_columns[c];
  for_warp_rows<Shape>([&m](int r) { m.row_scale[r] = m.next_rows[r]; });
}

// Leaves column_scale, row_scale and, in column_factor, the columns' reciprocals: of the iterate with the smallest
// imbalance, the latest among equals. All threads of the block come here together.
template <class Shape>
EW_DEVICE void balance(const TileElements<Shape>& x, BalanceMemory<Shape>& m, int iterations) {
  for (int c = thread_index(); c < Shape::columns; c += Shape::threads) {
    m.next_columns[c] = m.column_factor[c] = 1.0f;
    m.column_means[c] = 0.0f;
  }
  for_warp_rows<Shape>([&m](int r) { m.next_rows[r] = m.row_factor[r] = 1.0f; });
  keep_scales(m);
  sync_block();
  float best = 0.0f;
  if (iterations > 0) {
    set_row_stds<Shape>(x, m);
    set_column_stds<Shape>(x, m);  // the means are not known yet: once for them, and again
    set_column_stds<Shape>(x, m);
    best = imbalance(m);
  }
  for (int i = 0; i < iterations; ++i) {
    scale_columns(m);
    scale_rows<Shape>(x, m);
    set_column_stds<Shape>(x, m);
    if (i == 0) set_column_stds<Shape>(x, m);  // the first rows' scales move the means far
    const float now = imbalance(m);
    sync_block();  // before the stds change again
    if (!(now <= best)) continue;
    best = now;
    keep_scales(m);
  }
  for (int c = thread_index(); c < Shape::columns; c += Shape::threads) m.column_factor[c] = 1.0f / m.column_scale[c];
  sync_block();
}

}  // namespace ew
