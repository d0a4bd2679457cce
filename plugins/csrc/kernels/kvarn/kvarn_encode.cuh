// Writes a balanced tile as a side (the keys or the values) of a KVarN record: rounds and packs it, and adds its
// scales.
//
// kvarn_balance.cuh says which elements a thread holds. A lane's columns are neighbours, so it packs them by itself; if
// they do not fill a byte (small heads in few bits), lanes combine theirs by shuffles. Codes are written as bytes or
// words, whole rows of a warp at a time.
#pragma once

#include "kernels/kvarn/kvarn_balance.cuh"
#include "layout/kvarn_record.h"

namespace ew {

constexpr float kSmallestStep = 1e-10f;

// Divides the tile by its root mean square and returns that; 1 for a tile of zeros.
template <class Shape>
EW_DEVICE float divide_by_size(TileElements<Shape>& x, BalanceMemory<Shape>& m) {
  float squares = 0.0f;
  EW_UNROLL
  for (int r = 0; r < Shape::warp_rows; ++r) {
    EW_UNROLL
    for (int j = 0; j < Shape::each; ++j) squares += x[r][j] * x[r][j];
  }
  m.sums[warp_index()][0] = warp_sum(squares);
  sync_block();
  float total = 0.0f;
  for (int w = 0; w < Shape::warps; ++w) total += m.sums[w][0];
  sync_block();
  const float size = square_root(total / (Shape::rows * Shape::columns));
  if (!(size > 0.0f)) return 1.0f;
  EW_UNROLL
  for (int r = 0; r < Shape::warp_rows; ++r) {
    EW_UNROLL
    for (int j = 0; j < Shape::each; ++j) x[r][j] /= size;
  }
  return size;
}

// To the nearest integer, ties to even: where a float's last place is 1. The low bits are those of the integer.
EW_DEVICE std::uint32_t round_even(float x) { return float_to_bits(x + 12582912.0f) & 0xffu; }

// A lane's codes of one row of `bits` bits each, its number at the row's start + lane * kEach * bits / 8.
template <int kEach>
EW_DEVICE void store_codes(const std::uint32_t (&codes)[kEach], int bits, unsigned char* row) {
  std::uint64_t packed = 0;
  EW_UNROLL
  for (int j = 0; j < kEach; ++j) packed |= static_cast<std::uint64_t>(codes[j]) << (j * bits);
  int width = kEach * bits, lanes = 1;
  for (; width < 8; width *= 2, lanes *= 2) {  // the neighbour's codes after one's own; its packed ones are complete
    const std::uint32_t other = shuffle_xor(static_cast<std::uint32_t>(packed), lanes);
    packed |= static_cast<std::uint64_t>(other) << width;
  }
  if (lane_index() % lanes != 0) return;
  const int at = lane_index() / lanes * (width / 8);
  if (width == 8)
    row[at] = static_cast<unsigned char>(packed);
  else if (width == 16)
    *reinterpret_cast<std::uint16_t*>(row + at) = static_cast<std::uint16_t>(packed);
  else if (width == 32)
    *reinterpret_cast<std::uint32_t*>(row + at) = static_cast<std::uint32_t>(packed);
  else
    *reinterpret_cast<std::uint64_t*>(row + at) = packed;
}

// Each row from its smallest element to its largest, in units of x / column_scale: the row's own scale is left in, as
// it is in what is stored. A step is at least kSmallestStep in units of the balanced row.
template <class Shape>
EW_DEVICE void round_rows(const TileElements<Shape>& x, const BalanceMemory<Shape>& m, const CodedSide& out) {
  const float top = static_cast<float>((1 << out.bits) - 1);
  float factor[Shape::each];
  load_lane_columns<Shape>(m.column_factor, factor);
  EW_UNROLL
  for (int first = 0; first < Shape::warp_rows; first += Shape::batch) {
    float high[Shape::batch], low[Shape::batch];  // low: of -x
    EW_UNROLL
    for (int i = 0; i < Shape::batch; ++i) {
      high[i] = x[first + i][0] * factor[0];
      low[i] = -high[i];
      EW_UNROLL
      for (int j = 1; j < Shape::each; ++j) {
        const float y = x[first + i][j] * factor[j];
        high[i] = larger(high[i], y);
        low[i] = larger(low[i], -y);
      }
    }
    const int base = warp_index() * Shape::warp_rows + first, mine = base + lane_index() / Shape::row_lanes;
    const float lowest = -join_each(low, Largest()), highest = join_each(high, Largest());
    const float step = larger((highest - lowest) / top, kSmallestStep * m.row_scale[mine]), per_step = 1.0f / step;
    if (lane_index() % Shape::row_lanes == 0) {
      out.a[mine] = float_to_half(clamp_to_half(step));
      out.b[mine] = float_to_half(clamp_to_half(lowest));
    }
    EW_UNROLL
    for (int i = 0; i < Shape::batch; ++i) {
      const float from = shuffle(lowest, i * Shape::row_lanes), factor_of_row = shuffle(per_step, i * Shape::row_lanes);
      std::uint32_t codes[Shape::each];
      EW_UNROLL
      for (int j = 0; j < Shape::each; ++j)
        codes[j] = round_even(clip((x[first + i][j] * factor[j] - from) * factor_of_row, 0.0f, top));
      store_codes(codes, out.bits, out.codes + (base + i) * (Shape::columns / 8) * out.bits);
    }
  }
}

// All threads of the block come here together.
template <class Shape>
EW_DEVICE void encode(TileElements<Shape>& x, int iterations, bool robust, const CodedSide& out) {
  auto& memory = *reinterpret_cast<BalanceMemory<Shape>*>(shared_memory());
  const float size = robust ? divide_by_size<Shape>(x, memory) : 1.0f;
  balance<Shape>(x, memory, iterations);
  round_rows<Shape>(x, memory, out);
  for (int c = thread_index(); c < Shape::columns; c += Shape::threads)
    out.c[c] = float_to_half(clamp_to_half(memory.column_scale[c] * size));
}

}  // namespace ew
