// The vector type Vec in the compiler's own four-lane vectors, for any CPU. simd.h alone includes this.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/simd/pick_rows.h"
#include "layout/tile.h"

namespace ew {
namespace {

constexpr int kWidth = 4;
constexpr int kMaxLanes = 4;  // query lanes a microkernel carries: 4 x 4 accumulators of the 32 registers of aarch64

typedef float Lanes __attribute__((vector_size(16)));
typedef std::int32_t IntLanes __attribute__((vector_size(16)));

struct Vec {
  Lanes v;
};

inline float float_from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Half to float: shift the exponent and mantissa into place, then let a multiplication re-bias (it also normalises
// subnormal halves); infinities and NaN keep an all-ones exponent.
inline float widen(Half h) {
  std::uint32_t magnitude = static_cast<std::uint32_t>(h & 0x7fff) << 13;
  float scaled = float_from_bits(magnitude) * float_from_bits(0x77800000u);  // 2^112
  std::uint32_t bits = (h & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000u : bits_of(scaled);
  return float_from_bits(bits | static_cast<std::uint32_t>(h & 0x8000) << 16);
}

// Float to half, to nearest even, for |x| <= 65504 or NaN (callers saturate).
inline Half narrow(float x) {
  std::uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<Half>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude < 0x38800000u) {  // subnormal half: adding 0.5 rounds at 2^-24, the weight of its lowest bit
    float rounded = float_from_bits(magnitude) + 0.5f;
    return static_cast<Half>(sign | (bits_of(rounded) - 0x3f000000u));
  }
  std::uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<Half>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

inline Vec splat(float x) { return {Lanes{x, x, x, x}}; }
inline Vec load(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Vec load(const Half* p) { return {Lanes{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}}; }
inline Vec load_one(const Half* p) { return splat(widen(*p)); }
inline Vec load(const std::int8_t* p) { return {__builtin_convertvector((IntLanes{p[0], p[1], p[2], p[3]}), Lanes)}; }
inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }

template <class Elem>
inline Vec load_part(const Elem* p, int n) {
  Elem whole[kWidth] = {};
  std::memcpy(whole, p, sizeof(Elem) * static_cast<unsigned>(n));
  return load(whole);
}
inline void store_part(float* p, Vec x, int n) { std::memcpy(p, &x, sizeof(float) * static_cast<unsigned>(n)); }
inline void store_half_part(Half* p, Vec x, int n) {
  for (int i = 0; i < n; ++i) p[i] = narrow(x.v[i]);
}

inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }  // fused where the target has it
inline Vec where(IntLanes mask, Vec yes, Vec no) {
  IntLanes y, n;
  std::memcpy(&y, &yes, sizeof y);
  std::memcpy(&n, &no, sizeof n);
  IntLanes bits = (mask & y) | (~mask & n);
  Vec x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) { return where(a.v < b.v, yes, no); }
inline Vec max(Vec a, Vec b) { return where(a.v > b.v, a, b); }  // b where either is NaN
inline Vec min(Vec a, Vec b) { return where(a.v < b.v, a, b); }  // b where either is NaN
inline Vec round_even(Vec x) {  // for |x| < 2^22: adding 1.5 * 2^23 leaves no bits below the unit
  volatile Lanes shifted = x.v + splat(12582912.0f).v;  // volatile: a compiler may not cancel the two
  return {shifted - splat(12582912.0f).v};
}
inline Vec times_pow2(Vec x, Vec n) {  // for results that are normal numbers
  IntLanes bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits += __builtin_convertvector(n.v, IntLanes) << 23;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline Vec sqrt(Vec x) { return {Lanes{std::sqrt(x.v[0]), std::sqrt(x.v[1]), std::sqrt(x.v[2]), std::sqrt(x.v[3])}}; }
inline float sum(Vec x) { return (x.v[0] + x.v[1]) + (x.v[2] + x.v[3]); }
inline float largest(Vec x) {
  Vec pair = max(x, {Lanes{x.v[2], x.v[3], x.v[0], x.v[1]}});
  return pair.v[0] > pair.v[1] ? pair.v[0] : pair.v[1];
}

// Lane i of the result is lane i ^ kDistance.
template <int kDistance>
inline Vec exchange(Vec x) {
  if constexpr (kDistance == 2) return {Lanes{x.v[2], x.v[3], x.v[0], x.v[1]}};
  if constexpr (kDistance == 1) return {Lanes{x.v[1], x.v[0], x.v[3], x.v[2]}};
}

// a0 b0 a1 b1 ..., in two vectors.
inline void zip(Vec& a, Vec& b) {
  const Lanes low = {a.v[0], b.v[0], a.v[1], b.v[1]};
  b.v = Lanes{a.v[2], b.v[2], a.v[3], b.v[3]};
  a.v = low;
}

// kWidth bytes of packed codes.
struct Packed {
  IntLanes v;
};
inline Packed load_packed(const unsigned char* p) { return {IntLanes{p[0], p[1], p[2], p[3]}}; }
// Code kPart of each byte.
template <int kBits, int kPart>
inline Vec code(Packed x) {
  return {__builtin_convertvector((x.v >> (kPart * kBits)) & ((1 << kBits) - 1), Lanes)};
}
// Whole numbers in [0, 255] as bytes.
inline void store_bytes(unsigned char* p, Vec x) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<unsigned char>(x.v[i]);
}

// Vectors of tokens (or value columns) that a microkernel carries: one block of tokens at least.
constexpr int columns(int) { return kBlockTokens / kWidth; }

}  // namespace
}  // namespace ew
