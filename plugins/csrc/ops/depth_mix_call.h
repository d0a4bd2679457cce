// Fills in a call of the DepthMix kernel, except the output.
#pragma once

#include <vector>

#include "generated/calls/depth_mix.h"
#include "ops/depth_mix.h"

namespace ew::ops::depth {

// A call with the array that it points to; a move keeps the array where it is, a copy is not made.
struct MixCall : EwDepthMix {
  std::vector<const void*> kept;

  MixCall() : EwDepthMix{} {}
  MixCall(const MixCall&) = delete;
  MixCall(MixCall&&) = default;
};

// type: EW_HALF or EW_BFLOAT16.
inline MixCall call_of(const Attributes& attributes, const Tensor* in, std::size_t count, std::int32_t type) {
  MixCall call;
  for (std::size_t i = kSources; i < count; ++i) call.kept.push_back(in[i].data);
  call.query = in[kQuery].data;
  call.key = in[kKey].data;
  call.value = in[kValue].data;
  call.sources = call.kept.data();
  call.tokens = in[kQuery].shape[0];
  call.query_heads = in[kQuery].shape[1];
  call.kv_heads = in[kKey].shape[1];
  call.head_dim = in[kQuery].shape[2];
  call.value_dim = in[kValue].shape[2];
  call.source_count = static_cast<std::int64_t>(call.kept.size()) / 2;
  call.scale = attributes.scale;
  call.type = type;
  return call;
}

}  // namespace ew::ops::depth
