// Fills in a call of the TokenScores kernels, except the outputs.
#pragma once

#include "generated/calls/token_scores.h"
#include "ops/token_scores.h"

namespace ew::ops::scores {

// type: EW_HALF or EW_BFLOAT16.
inline EwTokenScores call_of(const Attributes& attributes, const Tensor* in, std::int32_t type) {
  const StoredTokens stored = stored_tokens(in);
  EwTokenScores call{};
  call.ring = in[kRing].data;
  call.tiles = in[kTiles].data;
  call.slots = static_cast<const std::int32_t*>(in[kSlots].data);
  call.kv_lens = stored.layer_lens(attributes.layer);
  call.table = stored.layer_table(attributes.layer);
  call.last_positions = static_cast<const std::int64_t*>(in[kLastPositions].data);
  call.sinks = static_cast<const float*>(in[kSinks].data);
  if (attributes.k_bits > 0) {
    call.exact = in[kExact].data;
    call.encoded = layer_encoded(attributes, in);
    call.exact_tiles = in[kExact].shape[2];
  }
  call.k_bits = attributes.k_bits;
  call.v_bits = attributes.v_bits;
  call.rows = stored.rows();
  call.query_heads = in[kRing].shape[1];
  call.kv_heads = attributes.kv_heads;
  call.head_dim = in[kRing].shape[3];
  call.slot_count = in[kRing].shape[0];
  call.entries = in[kRing].shape[2];
  call.tile_count = in[kTiles].shape[0];
  call.tile_bytes = in[kTiles].shape[1];
  call.table_heads = stored.table_heads();
  call.table_width = in[kTileTable].shape[3];
  call.window = attributes.window;
  call.kv_bits = attributes.kv_bits;
  call.scale = attributes.scale;
  call.softcap = attributes.softcap;
  call.threshold = attributes.threshold;
  call.scope = static_cast<std::int32_t>(attributes.scope);
  call.group = static_cast<std::int32_t>(attributes.group);
  call.type = type;
  return call;
}

}  // namespace ew::ops::scores
