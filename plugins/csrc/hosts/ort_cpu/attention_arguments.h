// The part of a CPU call that both attention ops fill in the same way, and the outputs that update an input in place.
#pragma once

#include <cstring>

#include "cpu/attention/attention_args.h"
#include "hosts/ort_cpu/host.h"
#include "ops/attention_tensors.h"

namespace ew::ort {

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data);
}

template <class Attributes>
void set_attention(AttentionArgs& args, const Attributes& attributes, const AttentionTensors& in, const Tensor& tiles) {
  args.query = data<float>(in.query);
  args.key = data<float>(in.key);
  args.value = data<float>(in.value);
  args.starts = data<std::int32_t>(in.query_starts);
  args.kv_lens = in.layer_lens(attributes.layer);
  args.table = in.layer_table(attributes.layer);
  args.sinks = data<float>(in.sinks);
  args.tokens = in.query.shape[0];
  args.rows = in.rows();
  args.query_heads = in.query.shape[1];
  args.kv_heads = in.key.shape[1];
  args.head_dim = in.query.shape[2];
  args.value_dim = in.value.shape[2];
  args.tile_count = tiles.shape[0];
  args.table_heads = in.table_heads();
  args.table_width = in.tile_table.shape[3];
  args.scale = attributes.scale;
  args.softcap = attributes.softcap;
  args.window = attributes.window;
}

// An output that updates an input in place; where the host bound two buffers, a copy of the input to update.
template <std::size_t kRank>
void* updated(const Api& api, KernelContext* context, std::size_t index, const Tensor& from, std::size_t element) {
  static_assert(kRank >= 2 && kRank <= 4, "the pools' ranks");
  const std::int64_t* s = from.shape;
  Tensor to;
  if constexpr (kRank == 2)
    to = output(api, context, index, {s[0], s[1]});
  else if constexpr (kRank == 3)
    to = output(api, context, index, {s[0], s[1], s[2]});
  else
    to = output(api, context, index, {s[0], s[1], s[2], s[3]});
  std::size_t bytes = element;
  for (std::size_t axis = 0; axis < kRank; ++axis) bytes *= static_cast<std::size_t>(s[axis]);
  if (to.rank < 0) fail("outputs", "one fewer", "an output for each input that the op updates");
  if (to.data != from.data && bytes > 0) std::memcpy(to.data, from.data, bytes);
  return to.data;
}

}  // namespace ew::ort
