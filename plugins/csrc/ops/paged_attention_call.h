// Fills in a call of the PagedAttention kernels, except the outputs.
#pragma once

#include "generated/calls/paged_attention.h"
#include "ops/attention_call.h"
#include "ops/paged_attention.h"

namespace ew::ops::paged {

// type: EW_HALF or EW_BFLOAT16.
inline EwPagedAttention call_of(const Attributes& attributes, const Tensor* in, std::int32_t type) {
  EwPagedAttention call{};
  call.attention = attention_call(attributes, attention_tensors(in), type);
  call.tile_count = in[kTiles].shape[0];
  call.kv_bits = attributes.kv_bits;
  return call;
}

}  // namespace ew::ops::paged
