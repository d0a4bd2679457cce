// Products of bytes in the instruction set that the build compiles this file for. EW_VNNI: it has one instruction for
// four products and their sum.
//
//   Codes   kVecBytes bytes: four columns of kWidth rows
//   Sums    kWidth sums of 32 bits
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/simd.h"
#include "layout/panel.h"

namespace ew {
namespace {

constexpr int kParts = kPanelRows / kWidth;  // vectors of a panel's rows
constexpr int kVecBytes = kVectorBytes / kParts;

#if defined(EW_AVX512)

struct Codes {
  __m512i v;
};
struct Sums {
  __m512i v;
};
inline Codes load_codes(const unsigned char* p) { return {_mm512_loadu_si512(p)}; }
inline Sums splat_sums(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Vec to_vec(Sums x) { return {_mm512_cvtepi32_ps(x.v)}; }
// kBits bits of each byte from bit kFrom on, moved to bit kTo.
template <int kBits, int kFrom, int kTo>
inline Codes bits_of_bytes(Codes x) {
  if constexpr (kBits == 8) return x;
  const __m512i mask = _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kTo));
  if constexpr (kFrom > kTo) return {_mm512_and_si512(_mm512_srli_epi16(x.v, kFrom - kTo), mask)};
  if constexpr (kFrom < kTo) return {_mm512_and_si512(_mm512_slli_epi16(x.v, kTo - kFrom), mask)};
  return {_mm512_and_si512(x.v, mask)};
}
inline Codes operator|(Codes a, Codes b) { return {_mm512_or_si512(a.v, b.v)}; }
// Byte kByte of each four.
template <int kByte>
inline Vec byte_of_four(Codes x) {
  return {_mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(x.v, 8 * kByte), _mm512_set1_epi32(255)))};
}
#if defined(EW_VNNI)
template <int kBits>
inline Sums dot(Sums sums, Codes codes, std::int32_t four) {
  return {_mm512_dpbusd_epi32(sums.v, codes.v, _mm512_set1_epi32(four))};
}
#else
template <int kBits>
inline Sums dot(Sums sums, Codes codes, std::int32_t four) {
  const __m512i x = _mm512_set1_epi32(four);
  __m512i pairs;
  if constexpr (kBits == 8) {  // magnitudes times activations of their sign, whose pairs stay within 16 bits
    const __m512i w = _mm512_xor_si512(codes.v, _mm512_set1_epi8(static_cast<char>(0x80)));
    const __m512i turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), turned);
  } else {
    pairs = _mm512_maddubs_epi16(codes.v, x);
  }
  return {_mm512_add_epi32(sums.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
#endif
// kWidth signed bytes as numbers.
inline Vec load_signed(const unsigned char* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// Whole numbers in [-127, 127] as bytes.
inline void store_signed(std::int8_t* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}

#elif defined(EW_AVX2)

struct Codes {
  __m256i v;
};
struct Sums {
  __m256i v;
};
inline Codes load_codes(const unsigned char* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline Sums splat_sums(std::int32_t x) { return {_mm256_set1_epi32(x)}; }
inline Vec to_vec(Sums x) { return {_mm256_cvtepi32_ps(x.v)}; }
template <int kBits, int kFrom, int kTo>
inline Codes bits_of_bytes(Codes x) {
  if constexpr (kBits == 8) return x;
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kTo));
  if constexpr (kFrom > kTo) return {_mm256_and_si256(_mm256_srli_epi16(x.v, kFrom - kTo), mask)};
  if constexpr (kFrom < kTo) return {_mm256_and_si256(_mm256_slli_epi16(x.v, kTo - kFrom), mask)};
  return {_mm256_and_si256(x.v, mask)};
}
inline Codes operator|(Codes a, Codes b) { return {_mm256_or_si256(a.v, b.v)}; }
template <int kByte>
inline Vec byte_of_four(Codes x) {
  return {_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x.v, 8 * kByte), _mm256_set1_epi32(255)))};
}
#if defined(EW_VNNI)
template <int kBits>
inline Sums dot(Sums sums, Codes codes, std::int32_t four) {
  return {_mm256_dpbusd_avx_epi32(sums.v, codes.v, _mm256_set1_epi32(four))};
}
#else
template <int kBits>
inline Sums dot(Sums sums, Codes codes, std::int32_t four) {
  const __m256i x = _mm256_set1_epi32(four);
  __m256i pairs;
  if constexpr (kBits == 8) {
    const __m256i w = _mm256_xor_si256(codes.v, _mm256_set1_epi8(static_cast<char>(0x80)));
    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  } else {
    pairs = _mm256_maddubs_epi16(codes.v, x);
  }
  return {_mm256_add_epi32(sums.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
#endif
inline Vec load_signed(const unsigned char* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
inline void store_signed(std::int8_t* p, Vec x) {
  const __m256i whole = _mm256_cvtps_epi32(x.v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

#else

typedef std::uint32_t WordLanes __attribute__((vector_size(16)));  // four columns of a row in a lane, the first lowest

struct Codes {
  WordLanes v;
};
struct Sums {
  IntLanes v;
};
inline Codes load_codes(const unsigned char* p) {
  Codes x;
  std::memcpy(&x.v, p, sizeof x.v);
  return x;
}
inline Sums splat_sums(std::int32_t x) { return {IntLanes{x, x, x, x}}; }
inline Vec to_vec(Sums x) { return {__builtin_convertvector(x.v, Lanes)}; }
template <int kBits, int kFrom, int kTo>
inline Codes bits_of_bytes(Codes x) {
  constexpr std::uint32_t kMask = ((1u << kBits) - 1) * 0x01010101u;
  return {((x.v >> kFrom) & kMask) << kTo};
}
inline Codes operator|(Codes a, Codes b) { return {a.v | b.v}; }
inline IntLanes byte_lanes(Codes x, int byte) { return (IntLanes)(x.v >> (8 * byte) & 255u); }
template <int kByte>
inline Vec byte_of_four(Codes x) {
  return to_vec({byte_lanes(x, kByte)});
}
template <int kBits>
inline Sums dot(Sums sums, Codes codes, std::int32_t four) {
  std::int8_t x[4];
  std::memcpy(x, &four, sizeof x);
  for (int i = 0; i < 4; ++i) sums.v += byte_lanes(codes, i) * std::int32_t{x[i]};
  return sums;
}
inline Vec load_signed(const unsigned char* p) {
  Vec x;
  for (int i = 0; i < kWidth; ++i) x.v[i] = static_cast<float>(static_cast<std::int8_t>(p[i]));
  return x;
}
inline void store_signed(std::int8_t* p, Vec x) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<std::int8_t>(x.v[i]);
}

#endif

// What dot<kBits> takes from every code before it multiplies.
template <int kBits>
constexpr std::int32_t dot_offset() {
#if defined(EW_VNNI) || !(defined(EW_AVX512) || defined(EW_AVX2))
  return 0;
#else
  return kBits == 8 ? 128 : 0;
#endif
}

}  // namespace
}  // namespace ew
