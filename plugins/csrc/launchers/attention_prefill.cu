// Starts stage `prefill` of attention.
#include <algorithm>

#include "generated/calls/kvarn_attention.h"
#include "generated/calls/paged_attention.h"
#include "kernels/attention/prefill_attention.cuh"
#include "launchers/attention_stages.h"

namespace ew::cuda {
namespace {

// Blocks for the longest row that there may be; of shorter rows some end at once.
Grid grid_of(const AttentionView& view) {
  const std::int64_t lanes = static_cast<std::int64_t>(view.longest) * (view.query_heads / view.kv_heads);
  return Grid{(lanes + kPrefillLanes - 1) / kPrefillLanes * view.kv_heads, view.rows};
}

template <class Shape>
void launch_paged(const char* op, const AttentionView& view, void* stream) {
  PrefillArguments args{};
  args.view = view;
  launch(op, prefill_kernel<Shape>, grid_of(view), kPrefillThreads, 2 * Shape::bytes, stream, args);
}

// A channel's codes are copied in pieces of 16 bytes.
template <class Shape>
StageSizes stage_sizes(TileBits bits) {
  const int key_bytes = Shape::dim * std::max(16, Shape::tokens * bits.keys / 8);
  return {key_bytes, key_bytes + Shape::tokens * Shape::dim * bits.values / 8};
}

template <class Shape>
void launch_kvarn(const char* op, const AttentionView& view, TileBits bits, void* stream) {
  PrefillArguments args{};
  args.view = view;
  args.key_bits = bits.keys;
  args.value_bits = bits.values;
  args.sizes = stage_sizes<Shape>(bits);
  launch(op, prefill_kernel<Shape>, grid_of(view), kPrefillThreads,
         static_cast<std::size_t>(2 * (Shape::bytes + args.sizes.bytes)), stream, args);
}

void prefill_kvarn(const char* op, const AttentionView& view, TileBits bits, void* stream) {
  switch (view.head_dim) {
#define EW_CASE(d) \
  case d:          \
    return launch_kvarn<PrefillShape<d, d, true>>(op, view, bits, stream);
    EW_KVARN_ATTENTION_DIMS(EW_CASE)
#undef EW_CASE
  }
}

}  // namespace

void prefill(const char* op, const AttentionView& view, TileBits bits, void* stream) {
  if (bits.keys < 16) return prefill_kvarn(op, view, bits, stream);
#define EW_LAUNCH(k, v) \
  if (view.head_dim == k && view.value_dim == v) return launch_paged<PrefillShape<k, v, false>>(op, view, stream);
  EW_PAGED_ATTENTION_DIMS(EW_LAUNCH)
#undef EW_LAUNCH
}

}  // namespace ew::cuda
