// The arguments of stage `prepare` of both attention ops; paged_prepare.cuh and kvarn_prepare.cuh have the kernels.
#pragma once

#include "kernels/attention/attention.cuh"

namespace ew {

// The operands of the op, of view.type, and where the prepared ones go.
struct PrepareArguments {
  AttentionView view;
  const std::uint16_t *query, *key, *value;
  std::uint16_t *prepared_query, *fresh_keys, *fresh_values;
  float query_factor;
  bool rotate_values;
};

constexpr int kPrepareThreads = 256;

EW_DEVICE float element(const AttentionView& view, const std::uint16_t* from, std::int64_t index) {
  return view.type == kHalf ? to_float<kHalf>(from[index]) : to_float<kBfloat16>(from[index]);
}

}  // namespace ew
