// The memory layout of a KVarN cache: its records and its exact tiles.
//
// A record holds the tokens of a tile in codes of two to eight bits, as plugins/oracles/kvarn.py defines it:
//
//   keys    codes [head_dim][kTileTokens], a [head_dim], b [head_dim], c [kTileTokens]
//   values  codes [kTileTokens][head_dim], c [head_dim], a [kTileTokens], b [kTileTokens]
//
// Codes fill bytes from the lowest bits on; a, b and c are halves. An element is (code * a[row] + b[row]) * c[column],
// in the order of the codes' axes. Records are multiples of 16 bytes, so codes and scales are aligned for wide loads.
#pragma once

#include "layout/tile.h"

namespace ew {

constexpr std::int64_t kMinHeadDim = 16, kMaxHeadDim = 512;  // of KVarNAttention; powers of two

// Bytes of a side's codes. A row of codes is whole bytes, so nothing is rounded.
template <class Size>
EW_LAYOUT constexpr Size code_bytes(Size head_dim, int bits) {
  return head_dim * (kTileTokens / 8) * bits;
}

// Offsets of a side's scales, in halves from the end of its codes; `count`: of all of them.
template <class Size>
struct ScaleOffsets {
  Size a, b, c, count;
};

template <class Size>
EW_LAYOUT constexpr ScaleOffsets<Size> key_scales(Size head_dim) {
  return {0, head_dim, 2 * head_dim, 2 * head_dim + kTileTokens};
}

template <class Size>
EW_LAYOUT constexpr ScaleOffsets<Size> value_scales(Size head_dim) {
  return {head_dim, head_dim + kTileTokens, 0, head_dim + 2 * kTileTokens};
}

// Bytes of the keys' side, after which the values' begins.
template <class Size>
EW_LAYOUT constexpr Size key_bytes(Size head_dim, int bits) {
  return code_bytes(head_dim, bits) + 2 * key_scales(head_dim).count;
}

template <class Size>
EW_LAYOUT constexpr Size record_bytes(Size head_dim, int key_bits, int value_bits) {
  return key_bytes(head_dim, key_bits) + code_bytes(head_dim, value_bits) + 2 * value_scales(head_dim).count;
}

// One side of a record: codes [rows, columns * bits / 8], element [r, c] being (code * a[r] + b[r]) * c[c].
struct CodedSide {
  unsigned char* codes;
  Half *a, *b, *c;
  int bits;
};

template <class Size>
EW_LAYOUT CodedSide side_at(unsigned char* codes, Size bytes, const ScaleOffsets<Size>& scales, int bits) {
  Half* first = reinterpret_cast<Half*>(codes + bytes);
  return {codes, first + scales.a, first + scales.b, first + scales.c, bits};
}

template <class Size>
EW_LAYOUT CodedSide key_side(unsigned char* record, Size head_dim, int bits) {
  return side_at(record, code_bytes(head_dim, bits), key_scales(head_dim), bits);
}

template <class Size>
EW_LAYOUT CodedSide value_side(unsigned char* record, Size head_dim, int key_bits, int bits) {
  unsigned char* codes = record + code_bytes(head_dim, key_bits) + 2 * key_scales(head_dim).count;
  return side_at(codes, code_bytes(head_dim, bits), value_scales(head_dim), bits);
}

// Both sides of a record.
struct Record {
  CodedSide keys, values;

  template <class Size>
  EW_LAYOUT Record(unsigned char* record, Size head_dim, int key_bits, int value_bits)
      : keys(key_side(record, head_dim, key_bits)), values(value_side(record, head_dim, key_bits, value_bits)) {}
};

// Halves of an exact tile: keys, then values, laid out as PagedAttention's.
template <class Size>
EW_LAYOUT constexpr Size exact_tile_size(Size head_dim) {
  return 2 * kTileTokens * head_dim;
}

// The place of a later tile among a row's exact ones: place 0 is the sink's, tile 0; the others are a ring.
template <class Index>
EW_LAYOUT constexpr Index ring_place(Index tile, Index exact_tiles) {
  return 1 + (tile - 1) % (exact_tiles - 1);
}

}  // namespace ew
