// The layout of a KVarN record (layout/kvarn_record.h) for kernels that know the sizes when they are compiled.
#pragma once

#include "layout/kvarn_record.h"

namespace ew {

template <int kDim, int kKeyBits, int kValueBits>
struct RecordLayout {
  static constexpr int key_row_bytes = kTileTokens * kKeyBits / 8;
  static constexpr int value_row_bytes = kDim * kValueBits / 8;
  static constexpr int key_scales = code_bytes(kDim, kKeyBits);
  static constexpr int key_a = key_scales + 2 * ew::key_scales(kDim).a;
  static constexpr int key_c = key_scales + 2 * ew::key_scales(kDim).c;
  static constexpr int value_codes = key_bytes(kDim, kKeyBits);
  static constexpr int value_scales = value_codes + code_bytes(kDim, kValueBits);
  static constexpr int value_a = value_scales + 2 * ew::value_scales(kDim).a;
  static constexpr int value_c = value_scales + 2 * ew::value_scales(kDim).c;
  static constexpr int bytes = record_bytes(kDim, kKeyBits, kValueBits);
  static_assert(bytes % 16 == 0 && value_codes % 16 == 0, "wide loads");
};

}  // namespace ew
