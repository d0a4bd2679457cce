// The tensors that both attention ops read in the same way, and the part of them that belongs to the node's layer.
#pragma once

#include <cstdint>

#include "generated/tile_tokens.h"
#include "ops/tensor.h"

namespace ew::ops {

struct AttentionTensors {
  const Tensor &query, &key, &value, &query_starts, &kv_lens, &tile_table, &sinks;

  std::int64_t rows() const { return query_starts.shape[0] - 1; }
  // Row and KV head pairs of one layer: as many lengths has kv_lens for it.
  std::int64_t lens() const { return rows() * key.shape[1]; }
  const std::int32_t* layer_lens(std::int64_t layer) const {
    return static_cast<const std::int32_t*>(kv_lens.data) + layer * lens();
  }
  const std::int32_t* layer_table(std::int64_t layer) const {
    return static_cast<const std::int32_t*>(tile_table.data) + layer * lens() * tile_table.shape[3];
  }
};

}  // namespace ew::ops
