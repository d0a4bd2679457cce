// Stage `prepare` of KVarNAttention: queries, new keys and values as halves, rotated by Hadamard.
//
// A warp takes one head of one token, and lane l has channels l, l + 32, ...: the transform exchanges the upper bits of
// a channel inside a lane and the lower ones by shuffles. Bytes: every operand is read once and written once. Any
// architecture.
#pragma once

#include "kernels/attention/attention_prepare.cuh"
#include "kernels/kvarn/hadamard.cuh"

namespace ew {

// Block x: a token; the warps of the block go over its heads: queries, keys, values.
template <int kDim>
EW_KERNEL(kPrepareThreads, 4)
prepare_kvarn_kernel(EW_CONSTANT PrepareArguments args) {
  const AttentionView& view = args.view;
  const std::int64_t token = block_x();
  const int heads = view.query_heads + 2 * view.kv_heads;
  for (int i = warp_index(); i < heads; i += thread_count() / kWarp) {
    const bool is_query = i < view.query_heads, is_value = i >= view.query_heads + view.kv_heads;
    const int head = is_query ? i : (i - view.query_heads) % view.kv_heads;
    const std::uint16_t* from = is_query ? args.query : is_value ? args.value : args.key;
    std::uint16_t* to = is_query ? args.prepared_query : is_value ? args.fresh_values : args.fresh_keys;
    const std::int64_t at = (token * (is_query ? view.query_heads : view.kv_heads) + head) * kDim;
    float x[kDim / kWarp];
    EW_UNROLL
    for (int j = 0; j < kDim / kWarp; ++j) x[j] = element(view, from, at + kWarp * j + lane_index());
    if (!is_value || args.rotate_values) hadamard<kDim>(x);
    EW_UNROLL
    for (int j = 0; j < kDim / kWarp; ++j) {
      const float scaled = is_query ? x[j] * args.query_factor : x[j];
      to[at + kWarp * j + lane_index()] = float_to_half(clamp_to_half(scaled));
    }
  }
}

}  // namespace ew
