// The orthonormal Walsh-Hadamard transform of a head, in place of a product with its matrix. Include simd.h first.
#pragma once

#include <cmath>
#include <cstdint>

namespace ew {
namespace {

// One stage within a vector: lanes i and i + kDistance become their sum and their difference.
template <int kDistance>
inline Vec butterfly(Vec x) {
  float signs[kWidth];
  for (int i = 0; i < kWidth; ++i) signs[i] = i & kDistance ? -1.0f : 1.0f;
  return fma(x, load(signs), exchange<kDistance>(x));
}

inline Vec transform_lanes(Vec x) {
  if constexpr (kWidth > 8) x = butterfly<8>(x);
  if constexpr (kWidth > 4) x = butterfly<4>(x);
  return butterfly<1>(butterfly<2>(x));
}

// out = x H factor, H [dim, dim] orthonormal; dim: a power of two and a multiple of kWidth. `out` may be x.
inline void hadamard(const float* x, std::int64_t dim, float factor, float* out) {
  const Vec scale = splat(factor / std::sqrt(static_cast<float>(dim)));
  for (std::int64_t i = 0; i < dim; i += kWidth) store(out + i, transform_lanes(load(x + i) * scale));
  for (std::int64_t half = kWidth; half < dim; half *= 2)
    for (std::int64_t block = 0; block < dim; block += 2 * half)
      for (std::int64_t i = block; i < block + half; i += kWidth) {
        const Vec a = load(out + i), b = load(out + i + half);
        store(out + i, a + b);
        store(out + i + half, a - b);
      }
}

}  // namespace
}  // namespace ew
