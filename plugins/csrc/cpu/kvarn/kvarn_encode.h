// Encodes an exact tile as a record: balances, rounds and packs it. Include simd.h first.
#pragma once

#include <cstring>

#include "cpu/attention/write_tokens.h"
#include "cpu/kvarn/kvarn_balance.h"

namespace ew {
namespace {

constexpr float kSmallestStep = 1e-10f;

// The keys of a tile as rows of channels, or its values as rows of tokens.
inline void read_side(const Half* tile, std::int64_t dim, bool values, float* x) {
  if (values) {
    tile += value_offset(0, dim, dim);
    for (std::int64_t i = 0; i < kTileTokens * dim; i += kWidth) store(x + i, load(tile + i));
    return;
  }
  for (std::int64_t d = 0; d < dim; ++d)
    for (std::int64_t t = 0; t < kTileTokens; t += kWidth)
      store(x + d * kTileTokens + t, load(tile + key_offset(t, d, dim)));
}

// Divides the tile by its root mean square, and returns that; 1 for a tile of zeros.
inline float divide_by_size(const BalancedTile& t) {
  Vec squares = splat(0.0f);
  for (std::int64_t i = 0; i < t.rows * t.columns; i += kWidth) squares = fma(load(t.x + i), load(t.x + i), squares);
  const float size = std::sqrt(sum(squares) / static_cast<float>(t.rows * t.columns));
  if (!(size > 0.0f)) return 1.0f;
  for (std::int64_t i = 0; i < t.rows * t.columns; i += kWidth) store(t.x + i, load(t.x + i) / splat(size));
  return size;
}

// codes [count] below 2^bits, one per byte, into packed [count * bits / 8], the first in the lowest bits; count: a
// multiple of 8. Eight bytes at a time: each step joins neighbours.
inline void pack(const unsigned char* codes, std::int64_t count, int bits, unsigned char* packed) {
  for (std::int64_t i = 0; i < count; i += 8, packed += bits) {
    std::uint64_t x;
    std::memcpy(&x, codes + i, sizeof x);
    if (bits < 8) {
      x = (x | x >> (8 - bits)) & (0x0001000100010001u * ((1u << 2 * bits) - 1));
      x = (x | x >> (16 - 2 * bits)) & (0x0000000100000001u * ((1ull << 4 * bits) - 1));
      x = x | x >> (32 - 4 * bits);
    }
    std::memcpy(packed, &x, static_cast<std::size_t>(bits));
  }
}

// A row's quantizer: codes stand for low, low + step, ..., in units of x / column_scale.
struct Steps {
  float low, step;
};

// From the row's smallest element to its largest. In units of the balanced row a step is at least kSmallestStep; the
// row's own scale is left in, as it is in what is stored.
inline Steps steps_of(const BalancedTile& t, std::int64_t r, float top) {
  const float* x = t.x + r * t.columns;
  Vec low = load(x) * load(t.column_factor), high = low;
  for (std::int64_t c = kWidth; c < t.columns; c += kWidth) {
    const Vec y = load(x + c) * load(t.column_factor + c);
    low = min(y, low);
    high = max(y, high);
  }
  const float lowest = -largest(splat(0.0f) - low);
  const float even = (largest(high) - lowest) / top, floor = kSmallestStep * t.row_scale[r];
  return {lowest, even > floor ? even : floor};
}

inline void round_row(const BalancedTile& t, std::int64_t r, const Steps& steps, int bits, const CodedSide& out) {
  const float* x = t.x + r * t.columns;
  const float top = static_cast<float>((1 << bits) - 1);
  const Vec per_step = splat(1.0f / steps.step), from = splat(steps.low);
  unsigned char codes[kMaxHeadDim];
  for (std::int64_t c = 0; c < t.columns; c += kWidth) {
    const Vec y = load(x + c) * load(t.column_factor + c);
    store_bytes(codes + c, round_even(clip((y - from) * per_step, 0.0f, top)));
  }
  pack(codes, t.columns, bits, out.codes + r * t.columns * bits / 8);
  put(out.a + r, splat(steps.step), 1);
  put(out.b + r, splat(steps.low), 1);
}

// Rows go in blocks, so that the long way to one row's steps overlaps with the others'.
inline void round_rows(const BalancedTile& t, int bits, const CodedSide& out) {
  constexpr int kRows = 8;
  for (std::int64_t r = 0; r < t.rows; r += kRows) {
    Steps steps[kRows];
    for (int i = 0; i < kRows; ++i) steps[i] = steps_of(t, r + i, static_cast<float>((1 << bits) - 1));
    for (int i = 0; i < kRows; ++i) round_row(t, r + i, steps[i], bits, out);
  }
}

inline void encode(const KVarNArgs& a, const EncodeTask& task, float* memory) {
  const std::int64_t dim = a.head_dim;
  const BalancedTile t(memory, task.values ? kTileTokens : dim, task.values ? dim : kTileTokens);
  read_side(a.exact_tile(task.row, task.head, task.tile), dim, task.values, t.x);
  const float size = a.attributes.robust ? divide_by_size(t) : 1.0f;
  balance(t, a.attributes.iterations);
  const Record record = a.record(task.row, task.head, task.tile);
  const CodedSide& out = task.values ? record.values : record.keys;
  const int bits = task.values ? a.v_bits() : a.k_bits();
  round_rows(t, bits, out);
  for (std::int64_t c = 0; c < t.columns; c += kWidth) put(out.c + c, load(t.column_scale + c) * splat(size), kWidth);
}

}  // namespace
}  // namespace ew
