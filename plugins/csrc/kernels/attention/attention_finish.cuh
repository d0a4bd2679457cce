// Stage `finish` of attention: merges the parts that decoding left, and turns KVarN's outputs back by Hadamard.
//
// A warp takes a query head of a token, and lane l has channels l, l + 32, ..., so parts are read in full lines. Tokens
// of prefilled rows already have their output, which is read and written again only with kRotate. Any architecture.
#pragma once

#include "kernels/attention/attention.cuh"
#include "kernels/kvarn/hadamard.cuh"

namespace ew {

struct FinishArguments {
  AttentionView view;
  DecodeParts parts;
};

constexpr int kFinishWarps = 4;

// Sums of a head's channels over all parts, normalised with the sink's logit, if there is one.
template <int kDim>
EW_DEVICE void merge_parts(const AttentionView& view, const DecodeParts& parts, int row, int query, int head,
                           float (&x)[(kDim + kWarp - 1) / kWarp]) {
  constexpr int kEach = (kDim + kWarp - 1) / kWarp;
  float maximum = -__builtin_huge_valf();
  for (int part = 0; part < parts.parts; ++part)
    maximum = fmaxf(maximum, parts.denominators[2 * parts.lane(view, part, row, query, head)]);
  const float sink = view.sinks == nullptr ? -__builtin_huge_valf() : view.sinks[head] * kLog2E;
  maximum = fmaxf(maximum, sink);
  float denominator = fast_exp2(sink - maximum);
  EW_UNROLL
  for (int j = 0; j < kEach; ++j) x[j] = 0.0f;
  for (int part = 0; part < parts.parts; ++part) {
    const std::int64_t at = parts.lane(view, part, row, query, head);
    const float factor = fast_exp2(parts.denominators[2 * at] - maximum);  // 0 where the part saw nothing
    denominator += factor * parts.denominators[2 * at + 1];
    EW_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const int channel = kWarp * j + lane_index();
      if (channel < kDim) x[j] += factor * parts.sums[at * kDim + channel];
    }
  }
  EW_UNROLL
  for (int j = 0; j < kEach; ++j) x[j] /= denominator;
}

// Block (token, four heads).
template <int kDim, bool kRotate>
EW_KERNEL(kFinishWarps* kWarp, 8)
finish_kernel(EW_CONSTANT FinishArguments args) {
  constexpr int kEach = (kDim + kWarp - 1) / kWarp;
  const AttentionView& view = args.view;
  const int token = block_x(), head = block_y() * kFinishWarps + warp_index();
  const int row = row_of(view, token), start = view.starts[row];
  const bool was_decoded = is_decoded(view.starts[row + 1] - start, view.group());
  if (head >= view.query_heads || (!was_decoded && !kRotate)) return;
  std::uint16_t* output = view.output + (static_cast<std::int64_t>(token) * view.query_heads + head) * kDim;
  float x[kEach];
  if (was_decoded) {
    merge_parts<kDim>(view, args.parts, row, token - start, head, x);
  } else {
    EW_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const std::uint16_t bits = output[kWarp * j + lane_index()];
      x[j] = view.type == kHalf ? to_float<kHalf>(bits) : to_float<kBfloat16>(bits);
    }
  }
  if constexpr (kRotate) hadamard<kDim>(x);
  EW_UNROLL
  for (int j = 0; j < kEach; ++j) {
    const int channel = kWarp * j + lane_index();
    if (channel < kDim)
      output[channel] = view.type == kHalf ? from_float<kHalf>(clamp_to_half(x[j])) : from_float<kBfloat16>(x[j]);
  }
}

}  // namespace ew
