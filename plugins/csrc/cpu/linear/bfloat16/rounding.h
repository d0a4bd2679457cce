// Numbers of bfloat16: the upper half of a float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace ew {
namespace {

// To the nearest, to even where two are; NaN stays NaN.
inline std::uint16_t round_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<std::uint16_t>(is_nan ? bits >> 16 | 0x40u : rounded);
}

inline float widen_bfloat16(std::uint16_t number) {
  const std::uint32_t bits = std::uint32_t{number} << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace
}  // namespace ew
