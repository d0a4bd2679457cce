// The tensors that both attention ops read in the same way, and the part of them that belongs to the node's layer.
#pragma once

#include <cstdint>
#include <string>

#include "generated/tile_tokens.h"
#include "ops/tensor.h"

namespace ew::ops {

struct AttentionTensors {
  const Tensor &query, &key, &value, &query_starts, &kv_lens, &tile_table, &sinks;

  std::int64_t rows() const { return query_starts.shape[0] - 1; }
  // KV heads of the layer that has most of them; the tables have an entry for each, whatever this layer's number is.
  std::int64_t table_heads() const { return kv_lens.shape[2]; }
  // Row and KV head pairs of one layer: as many lengths has kv_lens for it.
  std::int64_t lens() const { return rows() * table_heads(); }
  const std::int32_t* layer_lens(std::int64_t layer) const {
    return static_cast<const std::int32_t*>(kv_lens.data) + layer * lens();
  }
  const std::int32_t* layer_table(std::int64_t layer) const {
    return static_cast<const std::int32_t*>(tile_table.data) + layer * lens() * tile_table.shape[3];
  }
};

// The heads of kv_lens [L, B, H], which must be enough for a layer of `kv_heads` heads.
inline std::int64_t expect_table_heads(const Tensor& kv_lens, std::int64_t kv_heads) {
  const std::int64_t heads = kv_lens.shape[2];
  if (heads < kv_heads)
    fail("kv_lens", "H = " + std::to_string(heads), "at least the key's " + std::to_string(kv_heads) + " heads");
  return heads;
}

}  // namespace ew::ops
