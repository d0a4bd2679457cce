// Pairs of bfloat16 in the instruction set that the build compiles this file for. EW_BF16: it has one instruction for
// the two products of a pair and their sum.
//
//   Pairs   two columns of kWidth rows, the first in the low half of a lane
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/simd.h"

namespace ew {
namespace {

#if defined(EW_AVX512)

struct Pairs {
  __m512i v;
};
inline Pairs load_pairs(const unsigned char* p) { return {_mm512_loadu_si512(p)}; }
inline Vec first_column(Pairs x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}; }
inline Vec second_column(Pairs x) {
  return {_mm512_castsi512_ps(_mm512_and_si512(x.v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
#if defined(EW_BF16)
inline Pairs splat_pair(std::uint32_t pair) { return {_mm512_set1_epi32(static_cast<int>(pair))}; }
// sum + products of the second columns + products of the first ones, each rounded to nearest; subnormal numbers are
// zeros.
inline Vec dot(Vec sum, Pairs a, Pairs b) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)}; }
#endif

#elif defined(EW_AVX2)

struct Pairs {
  __m256i v;
};
inline Pairs load_pairs(const unsigned char* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline Vec first_column(Pairs x) { return {_mm256_castsi256_ps(_mm256_slli_epi32(x.v, 16))}; }
inline Vec second_column(Pairs x) {
  return {_mm256_castsi256_ps(_mm256_and_si256(x.v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}

#else

typedef std::uint32_t PairLanes __attribute__((vector_size(16)));

struct Pairs {
  PairLanes v;
};
inline Pairs load_pairs(const unsigned char* p) {
  Pairs x;
  std::memcpy(&x.v, p, sizeof x.v);
  return x;
}
inline Vec first_column(Pairs x) { return {(Lanes)(x.v << 16)}; }
inline Vec second_column(Pairs x) { return {(Lanes)(x.v & 0xffff0000u)}; }

#endif

}  // namespace
}  // namespace ew
