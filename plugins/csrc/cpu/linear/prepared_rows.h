// Rows of activations as products read them: codes of 8 bits with a scale for each chunk of columns, numbers, or pairs
// of bfloat16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/threads/scratch.h"
#include "layout/panel.h"

namespace ew {

constexpr std::int64_t kLargestCode = 127;  // of an activation; the smallest is -127

// What the activations of a product are.
enum class Activations {
  kCodes,    // of 8 bits
  kNumbers,  // of float32
  kPairs,    // of bfloat16
};

// How a product treats the zero of its codes.
enum class Offsets {
  kZero,    // codes lie around 2^(bits - 1): whole sums begin with what that takes away
  kMinima,  // a block has a minimum, which is multiplied by the sum of its activations
  kHalves,  // a scale is of half a chunk; as kMinima, with a minimum of -2^(bits - 1) scale where there is none
};

inline Offsets offsets_of(const PanelShape& shape) {
  if (shape.block < kChunkColumns) return Offsets::kHalves;
  return shape.minima ? Offsets::kMinima : Offsets::kZero;
}

// Columns beyond the last are zeros, up to whole chunks. A step is a chunk, or half of one with Offsets::kHalves. Every
// array has a row for each token.
struct PreparedRows {
  std::int64_t columns = 0, chunks = 0, steps = 0;  // of a row; columns: of whole chunks
  std::int8_t* codes = nullptr;                     // [columns]; null unless the activations are codes
  float* scales = nullptr;                          // [chunks]
  std::int32_t* starts = nullptr;                   // [steps]: what the whole sum of a step begins with
  float* shares = nullptr;                          // [steps]: the sum of a step's activations
  float* numbers = nullptr;                         // [columns]; null unless the activations are numbers
  std::uint32_t* pairs = nullptr;  // [columns / 2]: the first column is in the low half; null unless pairs

  // What a product reads of a row, the few numbers next to codes left out.
  std::int64_t row_bytes() const { return columns * (numbers ? 4 : pairs ? 2 : 1); }

  // Rows of `shape` in the memory of `buffer`. Throws std::bad_alloc.
  static PreparedRows reserve(FloatBuffer& buffer, const PanelShape& shape, std::int64_t tokens,
                              Activations activations) {
    PreparedRows rows;
    rows.chunks = shape.chunks();
    rows.columns = rows.chunks * kChunkColumns;
    rows.steps = rows.chunks * (offsets_of(shape) == Offsets::kHalves ? 2 : 1);
    if (activations != Activations::kCodes) {
      const bool are_pairs = activations == Activations::kPairs;
      float* memory = buffer.reserve(static_cast<std::size_t>(tokens * rows.columns / (are_pairs ? 2 : 1)));
      if (are_pairs)
        rows.pairs = reinterpret_cast<std::uint32_t*>(memory);
      else
        rows.numbers = memory;
      return rows;
    }
    constexpr std::int64_t kCodes = sizeof(float);  // in the place of a float
    const std::int64_t floats = rows.columns / kCodes + rows.chunks + 2 * rows.steps;
    float* memory = buffer.reserve(static_cast<std::size_t>(tokens * floats));
    rows.codes = reinterpret_cast<std::int8_t*>(memory);
    rows.scales = memory + tokens * rows.columns / kCodes;
    rows.shares = rows.scales + tokens * rows.chunks;
    rows.starts = reinterpret_cast<std::int32_t*>(rows.shares + tokens * rows.steps);
    return rows;
  }
};

}  // namespace ew
