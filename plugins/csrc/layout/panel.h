// The memory layout of a matrix of codes or of bfloat16: panels of kPanelRows rows, whose columns come in chunks of
// kChunkColumns.
//
//   panel   [groups], then factors: none unless scales have 8 bits
//   group   of the columns of a scale, or a chunk of them where a scale has fewer:
//           [chunks][64 * bits] bytes of codes, then [scales of the group][kPanelRows] scales, then as many minima
//           or zero points, numbers of the same type
//   factors for each kFactorColumns columns [kPanelRows] halves, which signed scales of 8 bits are multiplied by, then
//           as many for minima where there are minima
//
// The codes of a chunk are planes of 4, 2 or 1 bits, the low bits first: 5 bits are a plane of 4 and one of 1. A
// plane's vectors have 64 bytes, four columns of each row: byte 4 r + c is of row r. The lowest bits of a byte are of
// columns c, the next ones of columns 4 + c, and so on through the plane.
//
// Numbers of bfloat16, which are codes of kNumberBits, have no scales. A chunk's vectors of 64 bytes have two columns
// of each row: numbers 2 r and 2 r + 1 are of row r. Every engine holds this layout, whatever CPU runs it.
#pragma once

#include <cstdint>

#include "layout/tile.h"

namespace ew {

constexpr int kPanelRows = 16;       // plugins/ops: PANEL_ROWS
constexpr int kChunkColumns = 32;    // plugins/ops: CHUNK_COLUMNS
constexpr int kFactorColumns = 256;  // plugins/ops: FACTOR_COLUMNS
constexpr int kFactorBytes = 2 * kPanelRows;
constexpr int kVectorBytes = 64;  // codes of four columns of a panel, a byte each
constexpr int kHalfChunk = kChunkColumns / 2;
constexpr int kNumberBits = 16;  // plugins/ops: NUMBER_BITS

// Bits of the plane that has the low bits of a code, and of the other plane.
constexpr int low_bits(int bits) { return bits == 8 ? 8 : bits >= 4 ? 4 : 2; }
constexpr int high_bits(int bits) { return bits - low_bits(bits); }

// Sizes of a matrix. A scale is of `block` columns, which are 16 or a multiple of 32.
struct PanelShape {
  std::int64_t rows, columns, bits, block, scale_bytes;
  bool minima;       // or zero points in their place
  bool zero_points;  // zero_point * scale is taken away

  bool has_scales() const { return bits != kNumberBits; }
  std::int64_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  std::int64_t chunks() const { return (columns + kChunkColumns - 1) / kChunkColumns; }
  std::int64_t chunk_bytes() const { return kVectorBytes * bits; }
  std::int64_t chunks_of_group() const { return block < kChunkColumns ? 1 : block / kChunkColumns; }
  std::int64_t groups() const { return (chunks() + chunks_of_group() - 1) / chunks_of_group(); }
  std::int64_t scales_of_group() const { return block < kChunkColumns ? kChunkColumns / block : 1; }
  // Of all scales of a group, and of its minima again.
  std::int64_t scales_bytes() const { return has_scales() ? scales_of_group() * kPanelRows * scale_bytes : 0; }
  // Of all scales and minima of a group.
  std::int64_t numbers_bytes() const { return scales_bytes() * (minima ? 2 : 1); }
  // Of all groups: the factors begin there.
  std::int64_t groups_bytes() const { return chunks() * chunk_bytes() + groups() * numbers_bytes(); }
  // Where the factors of a chunk's scales are, from the first factor on.
  std::int64_t factors_at(std::int64_t chunk) const {
    return chunk / (kFactorColumns / kChunkColumns) * kFactorBytes * (minima ? 2 : 1);
  }
  std::int64_t factors_bytes() const {
    return scale_bytes == 1 ? factors_at(chunks() + kFactorColumns / kChunkColumns - 1) : 0;
  }
  std::int64_t panel_bytes() const { return groups_bytes() + factors_bytes(); }
};

// Of a node with these attributes.
template <class Attributes>
PanelShape panel_shape(const Attributes& a) {
  return {a.rows, a.columns, a.bits, a.block, a.scale_bits / 8, a.minima != 0, a.minima == 2};
}

// Of an expert's matrices up and down.
template <class Attributes>
PanelShape up_shape(const Attributes& a) {
  return {2 * a.inner, a.columns, a.up_bits, a.up_block, a.up_scale_bits / 8, a.up_minima != 0, a.up_minima == 2};
}
template <class Attributes>
PanelShape down_shape(const Attributes& a) {
  return {a.columns, a.inner, a.down_bits, a.down_block, a.down_scale_bits / 8, a.down_minima != 0, a.down_minima == 2};
}

}  // namespace ew
