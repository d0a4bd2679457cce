// SplitQkv: splits a packed projection into heads; on the way query and key are normalised and rotated.
//
// A warp takes one head of one token. packed [tokens, width] of `type` has the heads of query, key and value one after
// another. Lane l has channels l, l + 32, ...; a channel's partner in the rotation, R channels away, is read again
// (from the first cache) and normalised again instead of being exchanged between lanes, so that any R and head size
// works. Bytes: the projection is read once and written once, and cos, sin [tokens, R] are read once per token. Any
// architecture.
#pragma once

#include "kernels/device/device.cuh"

namespace ew {

struct SplitQkvArguments {
  const std::uint16_t* packed;
  const std::uint16_t *cos, *sin;              // [tokens, half], or null with half 0
  const std::uint16_t *query_norm, *key_norm;  // [head_dim], or both null
  std::uint16_t *query, *key, *value;
  int query_heads, kv_heads, head_dim, value_dim, half;
  float epsilon;
};

constexpr int kSplitThreads = 256;

// One head of one token: where it is read and written, and what is done to it on the way.
struct SplitHead {
  const std::uint16_t *from, *norm;
  std::uint16_t* to;
  int size;
  bool rotates;
};

EW_DEVICE SplitHead split_head(const SplitQkvArguments& args, std::int64_t token, int head) {
  const int keys = args.query_heads, values = keys + args.kv_heads;
  const int width = values * args.head_dim + args.kv_heads * args.value_dim;
  const std::uint16_t* row = args.packed + token * width;
  const int size = args.head_dim;
  if (head < keys) return {row + head * size, args.query_norm, args.query + (token * keys + head) * size, size, true};
  if (head < values)
    return {row + head * size, args.key_norm, args.key + (token * args.kv_heads + head - keys) * size, size, true};
  const int wide = args.value_dim, which = head - values;
  return {row + values * size + which * wide, nullptr, args.value + (token * args.kv_heads + which) * wide, wide,
          false};
}

// The factor that makes the head's root mean square 1, for all lanes.
template <Type kType>
EW_DEVICE float norm_factor(const SplitHead& head, float epsilon) {
  if (head.norm == nullptr) return 1.0f;
  float squares = 0.0f;
  for (int i = lane_index(); i < head.size; i += kWarp) {
    const float x = to_float<kType>(head.from[i]);
    squares += x * x;
  }
  return inverse_sqrt(warp_sum(squares) / static_cast<float>(head.size) + epsilon);
}

template <Type kType>
EW_DEVICE float normalised(const SplitHead& head, int channel, float factor) {
  const float x = to_float<kType>(head.from[channel]) * factor;
  return head.norm == nullptr ? x : x * to_float<kType>(head.norm[channel]);
}

template <Type kType>
EW_KERNEL(kSplitThreads, 4)
split_qkv_kernel(EW_CONSTANT SplitQkvArguments args) {
  const std::int64_t token = block_x();
  const int heads = args.query_heads + 2 * args.kv_heads;
  for (int i = warp_index(); i < heads; i += kSplitThreads / kWarp) {
    const SplitHead head = split_head(args, token, i);
    const float factor = norm_factor<kType>(head, args.epsilon);
    const int half = head.rotates ? args.half : 0;
    for (int channel = lane_index(); channel < head.size; channel += kWarp) {
      float x = normalised<kType>(head, channel, factor);
      if (channel < 2 * half) {
        const bool is_left = channel < half;
        const int angle = is_left ? channel : channel - half;
        const float c = to_float<kType>(args.cos[token * half + angle]);
        const float s = to_float<kType>(args.sin[token * half + angle]);
        const float other = normalised<kType>(head, is_left ? channel + half : channel - half, factor);
        x = is_left ? x * c - other * s : x * c + other * s;
      }
      head.to[channel] = from_float<kType>(x);
    }
  }
}

}  // namespace ew
