// Turns a row of activations into what products read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/linear/bfloat16/rounding.h"
#include "cpu/linear/block_linear.h"
#include "cpu/linear/dot.h"

namespace ew {
namespace {

// The factor of the row's RMS norm: 1 / sqrt(mean of squares + epsilon).
inline float norm_factor(const float* x, std::int64_t size, float epsilon) {
  Vec squares = splat(0.0f);
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) squares = fma(load(x + i), load(x + i), squares);
  if (i < size) {
    const Vec rest = load_part(x + i, static_cast<int>(size - i));
    squares = fma(rest, rest, squares);
  }
  return 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + epsilon);
}

// Numbers of x, as many of a vector's as `count` says, times those of `norm` where there is one.
inline Vec load_normed(const float* x, const float* norm, std::int64_t count) {
  if (count <= 0) return splat(0.0f);
  if (count >= kWidth) return norm ? load(x) * load(norm) : load(x);
  const int part = static_cast<int>(count);
  return norm ? load_part(x, part) * load_part(norm, part) : load_part(x, part);
}

// Up to kChunkColumns numbers, times `norm` where there is one, as codes: a number is close to code * scale. Returns
// the scale, NaN where one of them is none.
inline float code_chunk(const float* x, const float* norm, std::int64_t count, std::int8_t* codes,
                        std::int32_t sums[2]) {
  constexpr int kVecs = kChunkColumns / kWidth;
  Vec v[kVecs], most = splat(0.0f), check = splat(0.0f);
  for (int i = 0; i < kVecs; ++i) {
    v[i] = load_normed(x + i * kWidth, norm ? norm + i * kWidth : nullptr, count - i * kWidth);
    most = max(max(v[i], splat(0.0f) - v[i]), most);
    check = fma(v[i], splat(0.0f), check);  // 0, or NaN where a number is not finite
  }
  const float largest_one = largest(most);
  const bool finite = sum(check) == 0.0f;
  const float inverse = finite && largest_one > 0.0f ? static_cast<float>(kLargestCode) / largest_one : 0.0f;
  // a chunk of tiny numbers, whose inverse is infinite, counts as zeros
  const Vec factor = splat(inverse <= std::numeric_limits<float>::max() ? inverse : 0.0f);
  for (int half = 0; half < 2; ++half) {
    Vec total = splat(0.0f);
    for (int i = half * kVecs / 2; i < (half + 1) * kVecs / 2; ++i) {
      const Vec code = finite ? round_even(v[i] * factor) : splat(0.0f);
      total = total + code;
      store_signed(codes + i * kWidth, code);
    }
    sums[half] = static_cast<std::int32_t>(sum(total));
  }
  return finite ? largest_one / static_cast<float>(kLargestCode) : std::numeric_limits<float>::quiet_NaN();
}

// What products read besides a chunk's codes, whose halves have the given sums.
inline void write_steps(const PreparedRows& rows, const PanelShape& shape, std::int64_t token, std::int64_t chunk,
                        const std::int32_t sums[2]) {
  const float scale = rows.scales[token * rows.chunks + chunk];
  const Offsets offsets = offsets_of(shape);
  const std::int32_t taken = shape.bits == 8 ? dot_offset<8>() : 0;
  const std::int32_t zero = offsets == Offsets::kZero ? 1 << (shape.bits - 1) : 0;
  const int steps = offsets == Offsets::kHalves ? 2 : 1;
  for (int i = 0; i < steps; ++i) {
    const std::int32_t sum = steps == 2 ? sums[i] : sums[0] + sums[1];
    const std::int64_t place = token * rows.steps + chunk * steps + i;
    rows.starts[place] = (taken - zero) * sum;
    rows.shares[place] = scale * static_cast<float>(sum);
  }
}

// A row of x and what each of its numbers is multiplied by; norm: a scale for each column, or null.
struct ScaledRow {
  const float *x, *norm;
  float factor;

  float operator[](std::int64_t i) const { return norm ? x[i] * factor * norm[i] : x[i] * factor; }
};

// Numbers of a row; `rounded`: as bfloat16 has them.
inline void write_numbers(const PreparedRows& rows, const ScaledRow& x, std::int64_t count, std::int64_t token,
                          bool rounded) {
  float* to = rows.numbers + token * rows.columns;
  for (std::int64_t i = 0; i < rows.columns; ++i) to[i] = i < count ? x[i] : 0.0f;
  if (rounded)
    for (std::int64_t i = 0; i < rows.columns; ++i) to[i] = widen_bfloat16(round_bfloat16(to[i]));
}

inline void write_pairs(const PreparedRows& rows, const ScaledRow& x, std::int64_t count, std::int64_t token) {
  std::uint32_t* to = rows.pairs + token * rows.columns / 2;
  auto bits = [&](std::int64_t i) -> std::uint32_t { return i < count ? round_bfloat16(x[i]) : 0u; };
  const std::int64_t whole = count / 2;
  for (std::int64_t i = 0; i < whole; ++i)
    to[i] = round_bfloat16(x[2 * i]) | std::uint32_t{round_bfloat16(x[2 * i + 1])} << 16;
  for (std::int64_t i = whole; i < rows.columns / 2; ++i) to[i] = bits(2 * i);
}

void prepare_row(const BlockLinearArgs& args, const PreparedRows& rows, std::int64_t token) {
  const float* x = args.x + token * args.columns;
  const float factor = args.norm ? norm_factor(x, args.columns, args.epsilon) : 1.0f;
  const PanelShape shape = args.shape();
  if (rows.numbers) return write_numbers(rows, {x, args.norm, factor}, args.columns, token, !args.exact);
  if (rows.pairs) return write_pairs(rows, {x, args.norm, factor}, args.columns, token);
  for (std::int64_t chunk = 0; chunk < rows.chunks; ++chunk) {
    const std::int64_t at = chunk * kChunkColumns;
    std::int32_t sums[2];
    const float* norm = args.norm ? args.norm + at : nullptr;
    const float scale = code_chunk(x + at, norm, args.columns - at, rows.codes + token * rows.columns + at, sums);
    rows.scales[token * rows.chunks + chunk] = factor * scale;
    write_steps(rows, shape, token, chunk, sums);
  }
}

}  // namespace
}  // namespace ew
