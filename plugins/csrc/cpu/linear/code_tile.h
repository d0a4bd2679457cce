// The microkernel of products with activations of 8 bits: a few rows with one or two panels, whose codes are read once.
// Every sum has one order and one accumulator of floats, whatever rows and panels are computed together.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/linear/chunk_codes.h"
#include "cpu/linear/prepared_rows.h"

namespace ew {
namespace {

template <int kBits, int kRows, int kPanels, Offsets kOffsets>
struct CodeTile {
  static constexpr int kVecs = kPanels * kParts, kChunkBytes = kVectorBytes * kBits;
  using Scales = Vec[kVecs];
  using Whole = Sums[kRows][kVecs];

  const PanelShape& shape;
  const PreparedRows& rows;
  std::int64_t row;
  std::int64_t ahead;  // bytes from codes to those to fetch along with them; 0: none

  template <int kFour>
  EW_INLINE void add(Whole& whole, const Panels<kPanels>& panels, const std::int8_t* x) const {
    Codes codes[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) codes[v] = codes_of<kBits, kFour>(panels.codes(v));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      std::int32_t four;
      std::memcpy(&four, x + r * rows.columns + 4 * kFour, sizeof four);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) whole[r][v] = dot<kBits>(whole[r][v], codes[v], four);
    }
  }

  template <int kFirst>
  EW_INLINE void add_fours(Whole& whole, const Panels<kPanels>& panels, std::int64_t chunk) const {
    const std::int8_t* x = rows.codes + row * rows.columns + chunk * kChunkColumns;
    add<kFirst>(whole, panels, x);
    add<kFirst + 1>(whole, panels, x);
    add<kFirst + 2>(whole, panels, x);
    add<kFirst + 3>(whole, panels, x);
  }

  EW_INLINE void begin(Whole& whole, std::int64_t step) const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Sums start = splat_sums(rows.starts[(row + r) * rows.steps + step]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) whole[r][v] = start;
    }
  }

  EW_INLINE void end(Vec (&sums)[kRows][kVecs], const Whole& whole, const Scales& scales, const Scales& minima,
                     std::int64_t chunk, std::int64_t step) const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec scale = splat(rows.scales[(row + r) * rows.chunks + chunk]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) sums[r][v] = fma(scales[v] * scale, to_vec(whole[r][v]), sums[r][v]);
      if constexpr (kOffsets != Offsets::kZero) {
        const Vec share = splat(rows.shares[(row + r) * rows.steps + step]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) sums[r][v] = fma(minima[v], share, sums[r][v]);
      }
    }
  }

  // The scales of a step of the group from chunk `chunk` on, and the minima where they are read.
  EW_INLINE void load_numbers(Scales& scales, Scales& minima, const Panels<kPanels>& panels, std::int64_t codes,
                              std::int64_t chunk, int step) const {
    if constexpr (kOffsets == Offsets::kZero)
      panels.load_scales(scales, codes, shape.scale_bytes, shape.factors_at(chunk));
    else
      panels.load_numbers(scales, minima, shape, codes, chunk, step);
  }

  // out [kRows, stride], the panels' rows one after another.
  EW_INLINE void run(Panels<kPanels> panels, float* out, std::int64_t stride) const {
    const std::int64_t chunks = rows.chunks, of_group = shape.chunks_of_group();
    const std::int64_t numbers = shape.numbers_bytes();
    Vec sums[kRows][kVecs];
    for (auto& of_row : sums)
      for (Vec& sum : of_row) sum = splat(0.0f);
    for (std::int64_t first = 0; first < chunks; first += of_group) {
      const std::int64_t last = std::min(first + of_group, chunks);
      Scales scales, minima = {};
      load_numbers(scales, minima, panels, (last - first) * kChunkBytes, first, 0);
      for (std::int64_t chunk = first; chunk < last; ++chunk) {
        if (ahead) panels.prefetch(kChunkBytes, ahead);
        Whole whole;
        if constexpr (kOffsets == Offsets::kHalves) {
          begin(whole, 2 * chunk);
          add_fours<0>(whole, panels, chunk);
          end(sums, whole, scales, minima, chunk, 2 * chunk);
          load_numbers(scales, minima, panels, kChunkBytes, chunk, 1);
          begin(whole, 2 * chunk + 1);
          add_fours<4>(whole, panels, chunk);
          end(sums, whole, scales, minima, chunk, 2 * chunk + 1);
        } else {
          begin(whole, chunk);
          add_fours<0>(whole, panels, chunk);
          add_fours<4>(whole, panels, chunk);
          end(sums, whole, scales, minima, chunk, chunk);
        }
        panels.advance(kChunkBytes);
      }
      panels.advance(numbers);
    }
    store_sums(sums, out, stride);
  }
};

}  // namespace
}  // namespace ew
