// Stage `prepare` of PagedAttention: queries become scaled halves, and new keys and values go into their tiles.
//
// A block takes a token; its threads go over the elements of all heads. Bytes: every operand is read once, and written
// once as halves. Any architecture.
#pragma once

#include "kernels/attention/attention_prepare.cuh"

namespace ew {

EW_KERNEL(kPrepareThreads, 4) prepare_paged_kernel(EW_CONSTANT PrepareArguments args) {
  const AttentionView& view = args.view;
  const int token = block_x(), row = row_of(view, token);
  const std::int64_t queries = static_cast<std::int64_t>(view.query_heads) * view.head_dim;
  for (int i = thread_index(); i < queries; i += thread_count()) {
    const float x = element(view, args.query, token * queries + i) * args.query_factor;
    args.prepared_query[token * queries + i] = float_to_half(clamp_to_half(x));
  }
  const int width = view.head_dim + view.value_dim;
  for (int i = thread_index(); i < view.kv_heads * width; i += thread_count()) {
    const int head = i / width, channel = i % width;
    const int at = view.kv_lens[view.entry(row, head)] + token - view.starts[row];
    auto* tile = reinterpret_cast<std::uint16_t*>(pool_tile(view, row, head, at / kTileTokens));
    const int slot = at % kTileTokens;
    const std::int64_t source = static_cast<std::int64_t>(token) * view.kv_heads + head;
    if (channel < view.head_dim) {
      const float x = element(view, args.key, source * view.head_dim + channel);
      tile[key_offset(slot, channel, view.head_dim)] = float_to_half(clamp_to_half(x));
    } else {
      const float x = element(view, args.value, source * view.value_dim + channel - view.head_dim);
      tile[value_offset(slot, view.head_dim, view.value_dim) + channel - view.head_dim] =
          float_to_half(clamp_to_half(x));
    }
  }
}

}  // namespace ew
