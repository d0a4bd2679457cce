// The microkernels of products with bfloat16: a few rows with one or two panels, whose numbers are read once. Every sum
// has one order and one accumulator, whatever rows and panels are computed together.
#pragma once

#include <cstdint>

#include "cpu/linear/bfloat16/pairs.h"
#include "cpu/linear/chunk_codes.h"
#include "cpu/linear/prepared_rows.h"

namespace ew {
namespace {

// Activations are numbers of float32, and weights are widened.
template <int kRows, int kPanels>
struct WidenedTile {
  static constexpr int kVecs = Panels<kPanels>::kVecs;
  using Sums = Vec[kRows][kVecs];

  const PanelShape& shape;
  const PreparedRows& rows;
  std::int64_t row;
  std::int64_t ahead;  // bytes from weights to those to fetch along with them; 0: none

  // Add a column, of which x has the first row's activation.
  EW_INLINE void add(Sums& sums, const Vec (&weights)[kVecs], const float* x) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec number = splat(x[r * rows.columns]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] = fma(number, weights[v], sums[r][v]);
    }
  }

  // out [kRows, stride], the panels' rows one after another.
  EW_INLINE void run(Panels<kPanels> panels, float* out, std::int64_t stride) const {
    Vec sums[kRows][kVecs];
    for (auto& of_row : sums)
      for (Vec& sum : of_row) sum = splat(0.0f);
    const float* x = rows.numbers + row * rows.columns;
    for (std::int64_t column = 0; column < rows.columns; column += 2) {
      if (ahead) panels.prefetch(kVectorBytes, ahead);
      Vec weights[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) weights[v] = first_column(load_pairs(panels.codes(v)));
      add(sums, weights, x + column);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) weights[v] = second_column(load_pairs(panels.codes(v)));
      add(sums, weights, x + column + 1);
      panels.advance(kVectorBytes);
    }
    store_sums(sums, out, stride);
  }
};

#if defined(EW_BF16)

// Activations are pairs of bfloat16, as the weights are.
template <int kRows, int kPanels>
struct PairTile {
  static constexpr int kVecs = Panels<kPanels>::kVecs;

  const PanelShape& shape;
  const PreparedRows& rows;
  std::int64_t row;
  std::int64_t ahead;  // bytes from weights to those to fetch along with them; 0: none

  EW_INLINE void run(Panels<kPanels> panels, float* out, std::int64_t stride) const {
    Vec sums[kRows][kVecs];
    for (auto& of_row : sums)
      for (Vec& sum : of_row) sum = splat(0.0f);
    const std::int64_t pairs = rows.columns / 2;
    const std::uint32_t* x = rows.pairs + row * pairs;
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      if (ahead) panels.prefetch(kVectorBytes, ahead);
      Pairs weights[kVecs];
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) weights[v] = load_pairs(panels.codes(v));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Pairs numbers = splat_pair(x[r * pairs + pair]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) sums[r][v] = dot(sums[r][v], weights[v], numbers);
      }
      panels.advance(kVectorBytes);
    }
    store_sums(sums, out, stride);
  }
};

#endif

}  // namespace
}  // namespace ew
