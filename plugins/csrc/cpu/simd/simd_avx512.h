// The vector type Vec in AVX-512 F/BW/VL. simd.h alone includes this: internal linkage keeps its code in the objects
// that are compiled for it.
#pragma once

#include <immintrin.h>

#include "layout/tile.h"

namespace ew {
namespace {

constexpr int kWidth = 16;
constexpr int kMaxLanes = 8;  // query lanes a microkernel carries: 8 x 2 accumulators of 32 registers

struct Vec {
  __m512 v;
};

inline Vec splat(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline Vec load_one(const Half* p) { return {_mm512_set1_ps(_cvtsh_ss(*p))}; }
inline Vec load(const std::int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline Vec load_part(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline Vec load_part(const Half* p, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))}; }
inline Vec load_part(const std::int8_t* p, int n) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)))};
}
inline void store_part(float* p, Vec x, int n) { _mm512_mask_storeu_ps(p, first(n), x.v); }
inline void store_half_part(Half* p, Vec x, int n) {
  _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where either is NaN
inline Vec round_even(Vec x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_pow2(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
inline Vec sqrt(Vec x) { return {_mm512_sqrt_ps(x.v)}; }
inline float sum(Vec x) { return _mm512_reduce_add_ps(x.v); }
inline float largest(Vec x) { return _mm512_reduce_max_ps(x.v); }

// Lane i of the result is lane i ^ kDistance.
template <int kDistance>
inline Vec exchange(Vec x) {
  if constexpr (kDistance == 8) return {_mm512_shuffle_f32x4(x.v, x.v, 0x4e)};
  if constexpr (kDistance == 4) return {_mm512_shuffle_f32x4(x.v, x.v, 0xb1)};
  if constexpr (kDistance == 2) return {_mm512_permute_ps(x.v, 0x4e)};
  if constexpr (kDistance == 1) return {_mm512_permute_ps(x.v, 0xb1)};
}

// a0 b0 a1 b1 ..., in two vectors.
inline void zip(Vec& a, Vec& b) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  const __m512 first = _mm512_permutex2var_ps(a.v, low, b.v);
  b.v = _mm512_permutex2var_ps(a.v, high, b.v);
  a.v = first;
}

// out[r, i] = number places[i] of row r of low, then of high, for i < count; rows are of kBlockTokens numbers.
inline void pick_rows(const std::uint16_t* low, const std::uint16_t* high, const std::uint16_t* places, int count,
                      std::int64_t rows, std::uint16_t* out) {
  const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(places));
  for (std::int64_t i = 0; i < rows * kBlockTokens; i += kBlockTokens) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low + i));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(high + i));
    _mm256_mask_storeu_epi16(out + i, first(count), _mm256_permutex2var_epi16(a, at, b));
  }
}
inline void pick_rows(const std::uint32_t* low, const std::uint32_t* high, const std::uint32_t* places, int count,
                      std::int64_t rows, std::uint32_t* out) {
  const __m512i at = _mm512_loadu_si512(places);
  for (std::int64_t i = 0; i < rows * kBlockTokens; i += kBlockTokens)
    _mm512_mask_storeu_epi32(out + i, first(count),
                             _mm512_permutex2var_epi32(_mm512_loadu_si512(low + i), at, _mm512_loadu_si512(high + i)));
}

// kWidth bytes of packed codes.
struct Packed {
  __m512i v;
};
inline Packed load_packed(const unsigned char* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
// Code kPart of each byte. A permutation looks at the lowest four bits of its index only, so it masks and converts.
template <int kBits, int kPart>
inline Vec code(Packed x) {
  const __m512i shifted = kPart == 0 ? x.v : _mm512_srli_epi32(x.v, kPart * kBits);
  if constexpr (kBits == 8) return {_mm512_cvtepi32_ps(shifted)};
  if constexpr (kBits == 4)
    return {_mm512_permutexvar_ps(shifted, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))};
  if constexpr (kBits == 2)
    return {_mm512_permutexvar_ps(shifted, _mm512_setr_ps(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3))};
}
// Whole numbers in [0, 255] as bytes.
inline void store_bytes(unsigned char* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}

// Vectors of tokens (or value columns) that a microkernel of `lanes` lanes carries: enough chains to hide the FMA's
// latency, few enough to stay in registers.
constexpr int columns(int lanes) { return lanes == 1 ? 8 : lanes <= 4 ? 4 : 2; }

}  // namespace
}  // namespace ew
