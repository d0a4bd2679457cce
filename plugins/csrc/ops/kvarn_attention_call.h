// Fills in a call of the KVarNAttention kernels, except the outputs.
#pragma once

#include "generated/calls/kvarn_attention.h"
#include "ops/attention_call.h"
#include "ops/kvarn_attention.h"

namespace ew::ops::kvarn {

// type: EW_HALF or EW_BFLOAT16.
inline EwKVarNAttention call_of(const Attributes& attributes, const Tensor* in, std::int32_t type) {
  EwKVarNAttention call{};
  call.attention = attention_call(attributes, attention_tensors(in), type);
  const std::int64_t layers = in[kKvLens].shape[0], lens = attention_tensors(in).lens();
  call.slots = static_cast<const std::int32_t*>(in[kSlots].data);
  call.encoded_before = static_cast<const std::int32_t*>(in[kEncodedLens].data) + attributes.layer * lens;
  call.encoded_after = call.encoded_before + layers * lens;
  call.record_count = in[kTiles].shape[0];
  call.slot_count = in[kExact].shape[0];
  call.exact_tiles = in[kExact].shape[2];
  call.iterations = attributes.iterations;
  call.k_bits = static_cast<std::int32_t>(attributes.k_bits);
  call.v_bits = static_cast<std::int32_t>(attributes.v_bits);
  call.robust = static_cast<std::int32_t>(attributes.robust);
  call.rotate_values = static_cast<std::int32_t>(attributes.rotate_values);
  return call;
}

}  // namespace ew::ops::kvarn
