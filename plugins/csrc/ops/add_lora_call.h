// Fills in a call of the AddLora kernels, except the output.
#pragma once

#include <vector>

#include "generated/calls/add_lora.h"
#include "ops/add_lora.h"

namespace ew::ops::add_lora_op {

// A call with the arrays that it points to; a move keeps the arrays where they are, a copy is not made.
struct LoraCall : EwAddLora {
  std::vector<const void*> kept;
  std::vector<std::int64_t> kept_widths;

  LoraCall() : EwAddLora{} {}
  LoraCall(const LoraCall&) = delete;
  LoraCall(LoraCall&&) = default;
};

// type: EW_HALF or EW_BFLOAT16.
inline LoraCall call_of(const Attributes& attributes, const Tensor* in, std::size_t count, std::int32_t type) {
  LoraCall call;
  for (std::size_t i = kFactors; i < count; ++i) call.kept.push_back(in[i].data);
  for (std::size_t i = kFactors + 1; i < count; i += 2) call.kept_widths.push_back(in[i].shape[3]);
  call.base = in[kBase].data;
  call.x = in[kX].data;
  call.index = static_cast<const std::int32_t*>(in[kIndex].data);
  call.scale = static_cast<const float*>(in[kScale].data);
  call.factors = call.kept.data();
  call.widths = call.kept_widths.data();
  call.tokens = in[kBase].shape[1];
  call.outputs = in[kBase].shape[2];
  call.size = in[kX].shape[2];
  call.capacity = in[kFactors].shape[0];
  call.layers = in[kFactors].shape[1];
  call.layer = attributes.layer;
  call.rank = in[kFactors].shape[2];
  call.segments = static_cast<std::int64_t>(call.kept_widths.size());
  call.type = type;
  return call;
}

}  // namespace ew::ops::add_lora_op
