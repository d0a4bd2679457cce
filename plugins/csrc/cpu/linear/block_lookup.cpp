#include "cpu/linear/block_lookup.h"

#include <cstring>

#include "cpu/linear/bfloat16/rounding.h"
#include "cpu/simd/simd_portable.h"
#include "cpu/threads/fault.h"
#include "cpu/threads/rows.h"

namespace ew {
namespace {

float half_at(const unsigned char* p) {
  Half half;
  std::memcpy(&half, p, sizeof half);
  return widen(half);
}

// A scale or minimum; one of 8 bits is multiplied by the half at `factor`.
float number_at(const unsigned char* p, std::int64_t bytes, const unsigned char* factor) {
  if (bytes == 1) return static_cast<float>(static_cast<std::int8_t>(*p)) * half_at(factor);
  if (bytes == 2) return half_at(p);
  float number;
  std::memcpy(&number, p, sizeof number);
  return number;
}

// Code of column `column` of a chunk, in the panel's row `row`.
int code_at(const unsigned char* chunk, int bits, int row, int column) {
  const int low = low_bits(bits), high = high_bits(bits), four = column / 4, byte = 4 * row + column % 4;
  const int bit = four * low, high_bit = four * high;
  int code = chunk[bit / 8 * kVectorBytes + byte] >> bit % 8 & ((1 << low) - 1);
  if (high) {
    const int rest = chunk[(low + high_bit / 8) * kVectorBytes + byte] >> high_bit % 8 & ((1 << high) - 1);
    code |= rest << low;
  }
  return code;
}

void widen_row(const BlockLookupArgs& args, std::int64_t id, float* out) {
  const unsigned char* panel = args.panels + id / kPanelRows * panel_shape(args).panel_bytes();
  for (std::int64_t i = 0; i < args.columns; ++i) {
    std::uint16_t number;
    std::memcpy(&number, panel + i / 2 * kVectorBytes + (id % kPanelRows * 2 + i % 2) * 2, sizeof number);
    out[i] = widen_bfloat16(number);
  }
}

void restore_row(const BlockLookupArgs& args, std::int64_t id, float* out) {
  const PanelShape shape = panel_shape(args);
  const unsigned char* at = args.panels + id / kPanelRows * shape.panel_bytes();
  const int row = static_cast<int>(id % kPanelRows), bits = static_cast<int>(args.bits);
  const unsigned char* factors = at + shape.groups_bytes() + 2 * row;
  const std::int64_t of_group = shape.chunks_of_group(), group_columns = of_group * kChunkColumns;
  for (std::int64_t begin = 0; begin < args.columns; begin += group_columns) {
    const std::int64_t chunks = std::min(of_group, shape.chunks() - begin / kChunkColumns);
    const unsigned char* numbers = at + chunks * shape.chunk_bytes();
    const unsigned char* factor = factors + shape.factors_at(begin / kChunkColumns);
    const std::int64_t count = std::min(chunks * kChunkColumns, args.columns - begin);
    for (std::int64_t first = 0; first < count; first += args.block) {
      const std::int64_t place = (first / args.block * kPanelRows + row) * shape.scale_bytes;
      const float scale = number_at(numbers + place, shape.scale_bytes, factor);
      float offset = static_cast<float>(1 << (bits - 1));
      if (shape.minima)
        offset = number_at(numbers + shape.scales_bytes() + place, shape.scale_bytes, factor + kFactorBytes);
      const bool adds = shape.minima && !shape.zero_points;
      const float zero = adds ? 0.0f : offset, minimum = adds ? offset : 0.0f;
      for (std::int64_t i = first; i < std::min(first + args.block, count); ++i) {
        const unsigned char* chunk = at + i / kChunkColumns * shape.chunk_bytes();
        const int code = code_at(chunk, bits, row, static_cast<int>(i % kChunkColumns));
        out[begin + i] = (static_cast<float>(code) - zero) * scale + minimum;
      }
    }
    at = numbers + shape.numbers_bytes();
  }
}

}  // namespace

std::string find_fault(const BlockLookupArgs& args) {
  for (std::int64_t i = 0; i < args.tokens; ++i)
    if (args.ids[i] < 0 || args.ids[i] >= args.rows)
      return expected(index_of("ids", i), args.ids[i], "0 to " + std::to_string(args.rows - 1));
  return {};
}

void block_lookup(const BlockLookupArgs& args, const Parallel& parallel) {
  for_rows(parallel, args.tokens, args.columns, [&](std::int64_t begin, std::int64_t end) {
    const auto restore = args.bits == kNumberBits ? widen_row : restore_row;
    for (std::int64_t i = begin; i < end; ++i) restore(args, args.ids[i], args.out + i * args.columns);
  });
}

}  // namespace ew
