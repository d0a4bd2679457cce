// The vector type Vec in AVX2 + FMA + F16C. simd.h alone includes this: internal linkage keeps its code in the objects
// that are compiled for it.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "cpu/simd/pick_rows.h"
#include "layout/tile.h"

namespace ew {
namespace {

constexpr int kWidth = 8;
constexpr int kMaxLanes = 4;  // query lanes a microkernel carries: 4 x 2 accumulators of 16 registers

struct Vec {
  __m256 v;
};

inline Vec splat(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const Half* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Vec load_one(const Half* p) { return {_mm256_set1_ps(_cvtsh_ss(*p))}; }
inline Vec load(const std::int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x.v); }

template <class Elem>
inline Vec load_part(const Elem* p, int n) {
  Elem whole[kWidth] = {};
  std::memcpy(whole, p, sizeof(Elem) * static_cast<unsigned>(n));
  return load(whole);
}
inline void store_part(float* p, Vec x, int n) {
  float whole[kWidth];
  store(whole, x);
  std::memcpy(p, whole, sizeof(float) * static_cast<unsigned>(n));
}
inline void store_half_part(Half* p, Vec x, int n) {
  Half whole[kWidth];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(whole), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
  std::memcpy(p, whole, sizeof(Half) * static_cast<unsigned>(n));
}

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }  // b where either is NaN
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }  // b where either is NaN
inline Vec round_even(Vec x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_pow2(Vec x, Vec n) {  // for results that are normal numbers
  __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n.v), 23);
  return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.v), exponent))};
}
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
inline Vec sqrt(Vec x) { return {_mm256_sqrt_ps(x.v)}; }
inline float sum(Vec x) {
  __m128 h = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  h = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)));
}
inline float largest(Vec x) {
  __m128 h = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  h = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(h, _mm_shuffle_ps(h, h, 1)));
}

// Lane i of the result is lane i ^ kDistance.
template <int kDistance>
inline Vec exchange(Vec x) {
  if constexpr (kDistance == 4) return {_mm256_permute2f128_ps(x.v, x.v, 0x01)};
  if constexpr (kDistance == 2) return {_mm256_permute_ps(x.v, 0x4e)};
  if constexpr (kDistance == 1) return {_mm256_permute_ps(x.v, 0xb1)};
}

// a0 b0 a1 b1 ..., in two vectors.
inline void zip(Vec& a, Vec& b) {
  const __m256 low = _mm256_unpacklo_ps(a.v, b.v), high = _mm256_unpackhi_ps(a.v, b.v);
  a.v = _mm256_permute2f128_ps(low, high, 0x20);
  b.v = _mm256_permute2f128_ps(low, high, 0x31);
}

// kWidth bytes of packed codes.
struct Packed {
  __m256i v;
};
inline Packed load_packed(const unsigned char* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
// Code kPart of each byte. A permutation looks at the lowest three bits of its index only, so it masks two-bit codes
// and converts them.
template <int kBits, int kPart>
inline Vec code(Packed x) {
  const __m256i shifted = kPart == 0 ? x.v : _mm256_srli_epi32(x.v, kPart * kBits);
  if constexpr (kBits == 8) return {_mm256_cvtepi32_ps(shifted)};
  if constexpr (kBits == 4) return {_mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(15)))};
  if constexpr (kBits == 2) return {_mm256_permutevar8x32_ps(_mm256_setr_ps(0, 1, 2, 3, 0, 1, 2, 3), shifted)};
}
// Whole numbers in [0, 255] as bytes.
inline void store_bytes(unsigned char* p, Vec x) {
  const __m256i whole = _mm256_cvtps_epi32(x.v);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

// Vectors of tokens (or value columns) that a microkernel of `lanes` lanes carries.
constexpr int columns(int lanes) { return lanes == 1 ? 8 : lanes == 2 ? 4 : 2; }

}  // namespace
}  // namespace ew
