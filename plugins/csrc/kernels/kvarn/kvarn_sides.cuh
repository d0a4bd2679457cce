// The two sides of a KVarN record for kernels that learn the bits at run time; kvarn_record.cuh says what lies where.
#pragma once

#include "kernels/attention/attention.cuh"

namespace ew {

// Element [row, column] is (code * a[row] + b[row]) * c[column]; codes [rows][columns * bits / 8].
struct CodedSide {
  unsigned char* codes;
  std::uint16_t *a, *b, *c;
  int bits;
};

EW_DEVICE CodedSide key_side(unsigned char* record, int dim, int bits) {
  auto* a = reinterpret_cast<std::uint16_t*>(record + dim * kTileTokens / 8 * bits);
  return {record, a, a + dim, a + 2 * dim, bits};
}

EW_DEVICE CodedSide value_side(unsigned char* record, int dim, int key_bits, int bits) {
  unsigned char* codes = reinterpret_cast<unsigned char*>(key_side(record, dim, key_bits).c + kTileTokens);
  auto* c = reinterpret_cast<std::uint16_t*>(codes + dim * kTileTokens / 8 * bits);
  return {codes, c + dim, c + dim + kTileTokens, c, bits};
}

}  // namespace ew
