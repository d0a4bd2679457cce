// Where everything lies in a KVarN record: 128 tokens of one KV head in codes of two to eight bits.
//
//   keys    codes [head_dim][128 tokens], a [head_dim], b [head_dim], c [128]
//   values  codes [128 tokens][head_dim], c [head_dim], a [128], b [128]
//
// Codes fill bytes from the lowest bits on; a, b and c are halves. An element is (code * a[row] + b[row]) * c[column],
// in the order of the codes' axes. Records are multiples of 16 bytes, so codes and scales are aligned for wide loads.
#pragma once

#include "kernels/attention/attention.cuh"

namespace ew {

template <int kDim, int kKeyBits, int kValueBits>
struct RecordLayout {
  static constexpr int key_row_bytes = kTileTokens * kKeyBits / 8;
  static constexpr int value_row_bytes = kDim * kValueBits / 8;
  static constexpr int key_codes = 0;
  static constexpr int key_a = kDim * key_row_bytes;
  static constexpr int key_b = key_a + 2 * kDim;
  static constexpr int key_c = key_b + 2 * kDim;
  static constexpr int value_codes = key_c + 2 * kTileTokens;
  static constexpr int value_c = value_codes + kTileTokens * value_row_bytes;
  static constexpr int value_a = value_c + 2 * kDim;
  static constexpr int value_b = value_a + 2 * kTileTokens;
  static constexpr int bytes = value_b + 2 * kTileTokens;
  static_assert(bytes % 16 == 0 && value_codes % 16 == 0, "wide loads");
};

EW_DEVICE const std::uint16_t* halves_at(const unsigned char* record, int offset) {
  return reinterpret_cast<const std::uint16_t*>(record + offset);
}

}  // namespace ew
