// The microkernel of products with activations that stay numbers: the weights of a chunk are restored, code * scale +
// minimum, and then multiplied by a few rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/linear/chunk_codes.h"
#include "cpu/linear/prepared_rows.h"

namespace ew {
namespace {

template <int kPanels>
using ChunkWeights = Vec[kChunkColumns][Panels<kPanels>::kVecs];

// The scales and minima of a step of a chunk, the first one of a group.
template <int kPanels>
struct StepNumbers {
  static constexpr int kVecs = Panels<kPanels>::kVecs;
  Vec scales[kVecs], minima[kVecs];

  EW_INLINE StepNumbers(const PanelShape& shape, const Panels<kPanels>& panels, std::int64_t codes, std::int64_t chunk,
                        int step) {
    panels.load_numbers(scales, minima, shape, codes, chunk, step);
  }
};

template <int kBits, int kFour, int kPanels>
EW_INLINE void restore_four(ChunkWeights<kPanels>& weights, const Panels<kPanels>& panels,
                            const StepNumbers<kPanels>& first, const StepNumbers<kPanels>& second) {
  const StepNumbers<kPanels>& numbers = kFour < 4 ? first : second;
  for (int v = 0; v < Panels<kPanels>::kVecs; ++v) {
    const Codes codes = codes_of<kBits, kFour>(panels.codes(v));
    Vec* to = &weights[4 * kFour][v];
    constexpr int kStep = Panels<kPanels>::kVecs;
    to[0] = fma(byte_of_four<0>(codes), numbers.scales[v], numbers.minima[v]);
    to[kStep] = fma(byte_of_four<1>(codes), numbers.scales[v], numbers.minima[v]);
    to[2 * kStep] = fma(byte_of_four<2>(codes), numbers.scales[v], numbers.minima[v]);
    to[3 * kStep] = fma(byte_of_four<3>(codes), numbers.scales[v], numbers.minima[v]);
  }
}

template <int kPanels>
using Restore = void(ChunkWeights<kPanels>&, const Panels<kPanels>&, const StepNumbers<kPanels>&,
                     const StepNumbers<kPanels>&);

// The weights of a chunk; `second` has the numbers of its second half.
template <int kBits, int kPanels>
void restore_chunk(ChunkWeights<kPanels>& weights, const Panels<kPanels>& panels, const StepNumbers<kPanels>& first,
                   const StepNumbers<kPanels>& second) {
  restore_four<kBits, 0>(weights, panels, first, second);
  restore_four<kBits, 1>(weights, panels, first, second);
  restore_four<kBits, 2>(weights, panels, first, second);
  restore_four<kBits, 3>(weights, panels, first, second);
  restore_four<kBits, 4>(weights, panels, first, second);
  restore_four<kBits, 5>(weights, panels, first, second);
  restore_four<kBits, 6>(weights, panels, first, second);
  restore_four<kBits, 7>(weights, panels, first, second);
}

template <int kPanels>
Restore<kPanels>* restore_of(std::int64_t bits) {
  return with_bits(bits, [](auto known) -> Restore<kPanels>* { return restore_chunk<known, kPanels>; });
}

template <int kRows, int kPanels>
struct NumberTile {
  static constexpr int kVecs = Panels<kPanels>::kVecs;

  const PanelShape& shape;
  const PreparedRows& rows;
  std::int64_t row;
  std::int64_t ahead;  // bytes from codes to those to fetch along with them; 0: none

  EW_INLINE void run(Panels<kPanels> panels, float* out, std::int64_t stride) const {
    const std::int64_t chunks = rows.chunks, of_group = shape.chunks_of_group(), bytes = shape.chunk_bytes();
    const std::int64_t numbers = shape.numbers_bytes();
    const auto restore = restore_of<kPanels>(shape.bits);
    Vec sums[kRows][kVecs];
    for (auto& of_row : sums)
      for (Vec& sum : of_row) sum = splat(0.0f);
    for (std::int64_t first = 0; first < chunks; first += of_group) {
      const std::int64_t last = std::min(first + of_group, chunks), codes = (last - first) * bytes;
      const StepNumbers<kPanels> one(shape, panels, codes, first, 0);
      const StepNumbers<kPanels> other(shape, panels, codes, first, shape.block < kChunkColumns ? 1 : 0);
      for (std::int64_t chunk = first; chunk < last; ++chunk) {
        if (ahead) panels.prefetch(static_cast<int>(bytes), ahead);
        ChunkWeights<kPanels> weights;
        restore(weights, panels, one, other);
        multiply(sums, weights, rows.numbers + row * rows.columns + chunk * kChunkColumns);
        panels.advance(bytes);
      }
      panels.advance(numbers);
    }
    store_sums(sums, out, stride);
  }

  EW_INLINE void multiply(Vec (&sums)[kRows][kVecs], const ChunkWeights<kPanels>& weights, const float* x) const {
    for (int column = 0; column < kChunkColumns; ++column)
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const Vec number = splat(x[r * rows.columns + column]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) sums[r][v] = fma(number, weights[column][v], sums[r][v]);
      }
  }
};

}  // namespace
}  // namespace ew
