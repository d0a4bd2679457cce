// SplitQkv on the CPU: splits a packed projection into heads, normalised and rotated.
#pragma once

#include <cstdint>

#include "cpu/simd/variants.h"
#include "cpu/threads/parallel.h"
#include "generated/attributes/split_qkv.h"

namespace ew {

// One call of SplitQkv: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct SplitQkvArgs : declared::split_qkv::AttributeValues {
  const float* packed = nullptr;                           // [tokens, width()]
  const float *cos = nullptr, *sin = nullptr;              // [tokens, half]; null when half is 0
  const float *query_norm = nullptr, *key_norm = nullptr;  // [head_dim], or both null
  float *query = nullptr, *key = nullptr, *value = nullptr;
  std::int64_t tokens = 0, half = 0;

  std::int64_t width() const { return (query_heads + kv_heads) * head_dim + kv_heads * value_dim; }
};

// Tokens [begin, end) of a call.
EW_CPU_KERNEL(void, split_qkv_kernel, const SplitQkvArgs&, std::int64_t begin, std::int64_t end);

// A whole call, divided among the host's threads.
void split_qkv(const SplitQkvArgs& args, const Parallel& parallel);

}  // namespace ew
