// Fills in a call of the MarkTokens kernels, except the output.
#pragma once

#include "generated/calls/mark_tokens.h"
#include "ops/mark_tokens.h"

namespace ew::ops::marks {

// type: EW_HALF or EW_BFLOAT16.
inline EwMarkTokens call_of(const Attributes& attributes, const Tensor* in, std::int32_t type) {
  const StoredTokens stored = stored_tokens(in);
  EwMarkTokens call{};
  call.query = in[kQuery].data;
  call.tiles = in[kTiles].data;
  call.query_starts = static_cast<const std::int32_t*>(in[kQueryStarts].data);
  call.kv_lens = stored.layer_lens(attributes.layer);
  call.table = stored.layer_table(attributes.layer);
  call.position_ids = static_cast<const std::int64_t*>(in[kPositionIds].data);
  call.sinks = static_cast<const float*>(in[kSinks].data);
  call.values = static_cast<const float*>(in[kValues].data);
  call.tokens = in[kQuery].shape[0];
  call.rows = stored.rows();
  call.query_heads = in[kQuery].shape[1];
  call.kv_heads = attributes.kv_heads;
  call.head_dim = in[kQuery].shape[2];
  call.tile_count = in[kTiles].shape[0];
  call.tile_bytes = in[kTiles].shape[1];
  call.table_heads = stored.table_heads();
  call.table_width = in[kTileTable].shape[3];
  call.channels = attributes.channels();
  call.kv_bits = attributes.kv_bits;
  call.scale = attributes.scale;
  call.softcap = attributes.softcap;
  call.alpha = attributes.alpha;
  call.kind = static_cast<std::int32_t>(attributes.kind);
  call.type = type;
  return call;
}

}  // namespace ew::ops::marks
