// Fills in a call of the SplitQkv kernel, except the outputs.
#pragma once

#include "generated/calls/split_qkv.h"
#include "ops/split_qkv.h"

namespace ew::ops::split {

// type: EW_HALF or EW_BFLOAT16.
inline EwSplitQkv call_of(const Attributes& attributes, const Tensor* in, std::int32_t type) {
  EwSplitQkv call{};
  call.packed = in[kPacked].data;
  call.cos = in[kCos].data;
  call.sin = in[kSin].data;
  call.query_norm = in[kQueryNorm].data;
  call.key_norm = in[kKeyNorm].data;
  call.tokens = in[kPacked].shape[1];
  call.query_heads = attributes.query_heads;
  call.kv_heads = attributes.kv_heads;
  call.head_dim = attributes.head_dim;
  call.value_dim = attributes.value_dim;
  call.half = in[kCos].rank >= 0 ? in[kCos].shape[2] : 0;
  call.epsilon = attributes.epsilon;
  call.type = type;
  return call;
}

}  // namespace ew::ops::split
