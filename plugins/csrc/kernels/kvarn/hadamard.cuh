// The Hadamard transform of a head's channels, held by a warp.
#pragma once

#include "kernels/device/device.cuh"

namespace ew {

// The orthonormal Hadamard transform of kDim channels, channel 32 i + lane in x[i].
template <int kDim>
EW_DEVICE void hadamard(float (&x)[kDim / kWarp]) {
  constexpr int kEach = kDim / kWarp;
  EW_UNROLL
  for (int stride = 1; stride < kEach; stride *= 2) {
    EW_UNROLL
    for (int i = 0; i < kEach; ++i) {
      if ((i & stride) != 0) continue;
      const float low = x[i], high = x[i + stride];
      x[i] = low + high;
      x[i + stride] = low - high;
    }
  }
  EW_UNROLL
  for (int mask = 1; mask < kWarp; mask *= 2) {
    const bool is_high = (lane_index() & mask) != 0;
    EW_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const float other = shuffle_xor(x[i], mask);
      x[i] = is_high ? other - x[i] : x[i] + other;
    }
  }
  constexpr float kSize = kDim == 32 ? 0.17677669529f : kDim == 64 ? 0.125f : kDim == 128 ? 0.08838834764f : 0.0625f;
  static_assert(kDim == 32 || kDim == 64 || kDim == 128 || kDim == 256, "1 / sqrt(kDim)");
  EW_UNROLL
  for (int i = 0; i < kEach; ++i) x[i] *= kSize;
}

}  // namespace ew
