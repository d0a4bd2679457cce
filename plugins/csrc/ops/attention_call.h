// The part of a kernel's call that both attention ops fill in the same way.
#pragma once

#include <cstdint>

#include "generated/calls/attention.h"
#include "ops/attention_tensors.h"

namespace ew::ops {

template <class Attributes>
EwAttention attention_call(const Attributes& attributes, const AttentionTensors& in, std::int32_t type) {
  EwAttention call{};
  call.query = in.query.data;
  call.key = in.key.data;
  call.value = in.value.data;
  call.query_starts = static_cast<const std::int32_t*>(in.query_starts.data);
  call.sinks = static_cast<const float*>(in.sinks.data);
  call.tokens = call.longest = in.query.shape[0];
  call.rows = in.rows();
  call.query_heads = in.query.shape[1];
  call.kv_heads = in.key.shape[1];
  call.head_dim = in.query.shape[2];
  call.value_dim = in.value.shape[2];
  call.table_heads = in.table_heads();
  call.table_width = in.tile_table.shape[3];
  call.kv_lens = in.layer_lens(attributes.layer);
  call.table = in.layer_table(attributes.layer);
  call.window = attributes.window;
  call.scale = attributes.scale;
  call.softcap = attributes.softcap;
  call.type = type;
  return call;
}

}  // namespace ew::ops
