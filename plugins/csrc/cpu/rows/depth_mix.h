// DepthMix on the CPU: mixes values over layers.
#pragma once

#include <cstdint>

#include "cpu/simd/variants.h"
#include "cpu/threads/parallel.h"
#include "generated/attributes/depth_mix.h"

namespace ew {

// One call of DepthMix. Source i has its key at sources[2 i] and its mixed value after it.
struct DepthMixArgs : declared::depth_mix::AttributeValues {
  const float *query = nullptr, *key = nullptr, *value = nullptr;
  const float* const* sources = nullptr;
  float* mixed = nullptr;
  std::int64_t tokens = 0, query_heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0, source_count = 0;
};

// Tokens [begin, end) of a call.
EW_CPU_KERNEL(void, depth_mix_kernel, const DepthMixArgs&, std::int64_t begin, std::int64_t end);

// A whole call, divided among the host's threads.
void depth_mix(const DepthMixArgs& args, const Parallel& parallel);

}  // namespace ew
