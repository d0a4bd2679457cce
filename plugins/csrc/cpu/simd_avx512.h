// Vec over AVX-512 F/BW/VL. Only kernels_avx512.cpp includes this: internal linkage keeps its code in that object.
#pragma once

#include <immintrin.h>

#include "tile.h"

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
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline Vec load_part(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline Vec load_part(const Half* p, int n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))}; }
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
inline float sum(Vec x) { return _mm512_reduce_add_ps(x.v); }
inline float largest(Vec x) { return _mm512_reduce_max_ps(x.v); }

// Vectors of tokens (or value columns) that a microkernel of `lanes` lanes carries: enough chains to hide the FMA's
// latency, few enough to stay in registers.
constexpr int columns(int lanes) { return lanes == 1 ? 8 : lanes <= 4 ? 4 : 2; }

}  // namespace
}  // namespace ew
