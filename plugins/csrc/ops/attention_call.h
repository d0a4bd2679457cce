// What both attention ops' calls of the kernels have in common, whatever the host.
#pragma once

#include <cstdint>

#include "abi/cuda_calls.h"
#include "ops/tensor.h"

namespace ew::ops {

struct AttentionTensors {
  const Tensor &query, &key, &value, &query_starts, &kv_lens, &tile_table, &sinks;
};

template <class Attributes>
EwAttention attention_call(const Attributes& attributes, const AttentionTensors& in, std::int32_t type) {
  EwAttention call{};
  call.query = in.query.data;
  call.key = in.key.data;
  call.value = in.value.data;
  call.query_starts = static_cast<const std::int32_t*>(in.query_starts.data);
  call.sinks = static_cast<const float*>(in.sinks.data);
  call.tokens = call.longest = in.query.shape[0];
  call.rows = in.query_starts.shape[0] - 1;
  call.query_heads = in.query.shape[1];
  call.kv_heads = in.key.shape[1];
  call.head_dim = in.query.shape[2];
  call.value_dim = in.value.shape[2];
  call.table_width = in.tile_table.shape[3];
  const std::int64_t lens = call.rows * call.kv_heads;
  call.kv_lens = static_cast<const std::int32_t*>(in.kv_lens.data) + attributes.layer * lens;
  call.table = static_cast<const std::int32_t*>(in.tile_table.data) + attributes.layer * lens * call.table_width;
  call.window = attributes.window;
  call.scale = attributes.scale;
  call.softcap = attributes.softcap;
  call.type = type;
  return call;
}

}  // namespace ew::ops
