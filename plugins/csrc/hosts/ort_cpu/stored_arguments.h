// The part of a CPU call that the ops of cache policies fill in the same way.
#pragma once

#include "cpu/policy/stored_keys.h"
#include "hosts/ort_cpu/attention_arguments.h"
#include "ops/stored_tokens.h"

namespace ew::ort {

template <class Attributes>
StoredKeys stored_keys(const Attributes& attributes, const StoredTokens& in, std::int64_t head_dim) {
  StoredKeys stored;
  stored.tiles = data<unsigned char>(in.tiles);
  stored.kv_lens = in.layer_lens(attributes.layer);
  stored.table = in.layer_table(attributes.layer);
  stored.tile_count = in.tiles.shape[0];
  stored.tile_bytes = in.tiles.shape[1];
  stored.rows = in.rows();
  stored.head_dim = head_dim;
  stored.table_heads = in.table_heads();
  stored.table_width = in.tile_table.shape[3];
  return stored;
}

}  // namespace ew::ort
