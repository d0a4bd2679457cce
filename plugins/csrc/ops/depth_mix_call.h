// Fills in a call of the DepthMix kernel, except the output.
#pragma once

#include <vector>

#include "abi/cuda_calls.h"
#include "ops/depth_mix.h"

namespace ew::ops::depth {

inline std::vector<const void*> sources_of(const Tensor* in, std::size_t count) {
  std::vector<const void*> sources;
  for (std::size_t i = kSources; i < count; ++i) sources.push_back(in[i].data);
  return sources;
}

// The call points at `sources`. type: EW_HALF or EW_BFLOAT16.
inline EwDepthMix call_of(const Attributes& attributes, const Tensor* in, const std::vector<const void*>& sources,
                          std::int32_t type) {
  EwDepthMix call{};
  call.query = in[kQuery].data;
  call.key = in[kKey].data;
  call.value = in[kValue].data;
  call.sources = sources.data();
  call.tokens = in[kQuery].shape[0];
  call.query_heads = in[kQuery].shape[1];
  call.kv_heads = in[kKey].shape[1];
  call.head_dim = in[kQuery].shape[2];
  call.value_dim = in[kValue].shape[2];
  call.source_count = static_cast<std::int64_t>(sources.size()) / 2;
  call.scale = attributes.scale;
  call.type = type;
  return call;
}

}  // namespace ew::ops::depth
