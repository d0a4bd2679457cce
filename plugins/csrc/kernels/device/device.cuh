// The functions that kernels may use in addition to plain C++: threads, barriers, warp collectives, tensor-core
// products and copies.
//
// Kernels include this header and none of a host or a toolkit. With nvcc the functions are PTX (ptx.cuh). With a C++
// compiler and EW_EMULATED they run on the CPU (emulation/device.h), each thread as a fiber, so that every kernel is
// tested against its oracle even without a GPU.
//
// Rules that keep both the same:
// - a kernel is `EW_KERNEL(threads, blocks) name(EW_CONSTANT Arguments args)`, with one plain struct of arguments
// - shared memory comes from shared_memory() alone
// - all 32 lanes of a warp reach a collective together
// - halves are held as bits, one in a std::uint16_t or two in a std::uint32_t, the first in the lower 16
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef EW_EMULATED
#include "emulation/device.h"
#else
#include "kernels/device/ptx.cuh"
#endif

namespace ew {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kLog2E = 1.4426950408889634f;

// Element types of a graph's activations; caches hold halves whatever the graph has.
enum Type : std::int32_t { kHalf = 0, kBfloat16 = 1 };

// A number as 16 bits of `type`, and back. Half saturates: an infinity in a cache would poison every later token.
template <Type type>
EW_DEVICE float to_float(std::uint16_t bits) {
  if constexpr (type == kHalf)
    return half_to_float(bits);
  else
    return bits_to_float(static_cast<std::uint32_t>(bits) << 16);
}

template <Type type>
EW_DEVICE std::uint16_t from_float(float x) {
  if constexpr (type == kHalf) {
    return float_to_half(x);
  } else {
    const std::uint32_t bits = float_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // quiet NaN
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

// c += a b of numbers of `type`, laid out as mma_16x8x16 says.
template <Type type>
EW_DEVICE void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  if constexpr (type == kHalf)
    mma_16x8x16(c, a, b);
  else
    mma_16x8x16_bfloat16(c, a, b);
}

EW_DEVICE float clamp_to_half(float x) { return x > 65504.0f ? 65504.0f : (x < -65504.0f ? -65504.0f : x); }

EW_DEVICE int lane_index() { return thread_index() % kWarp; }
EW_DEVICE int warp_index() { return thread_index() / kWarp; }

// Over the lanes whose indices differ in the bits of kWidth - 1; all of them get the result, in the same order of
// operations on every lane.
template <int kWidth = kWarp>
EW_DEVICE float warp_sum(float x) {
  for (int mask = kWidth / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

template <int kWidth = kWarp>
EW_DEVICE float warp_max(float x) {
  for (int mask = kWidth / 2; mask > 0; mask /= 2) {
    const float other = shuffle_xor(x, mask);
    x = other > x ? other : x;
  }
  return x;
}

EW_DEVICE std::uint32_t pack_halves(std::uint16_t low, std::uint16_t high) {
  return static_cast<std::uint32_t>(low) | (static_cast<std::uint32_t>(high) << 16);
}

}  // namespace ew
