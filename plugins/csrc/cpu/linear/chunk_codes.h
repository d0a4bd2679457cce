// The codes and scales of a chunk of columns, as products read them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/linear/dot.h"

#define EW_INLINE inline __attribute__((always_inline))

namespace ew {
namespace {

// Codes of bits `kBits` of the columns 4 kFour ... 4 kFour + 3, for a part of a panel's rows. chunk: that part of the
// chunk's first vector.
template <int kBits, int kFour>
EW_INLINE Codes codes_of(const unsigned char* chunk) {
  constexpr int kLow = low_bits(kBits), kHigh = high_bits(kBits);
  constexpr int kBit = kFour * kLow, kHighBit = kFour * kHigh;
  const Codes low = bits_of_bytes<kLow, kBit % 8, 0>(load_codes(chunk + kBit / 8 * kVectorBytes));
  if constexpr (kHigh == 0) return low;
  if constexpr (kHigh > 0) {
    const Codes high = load_codes(chunk + (kLow + kHighBit / 8) * kVectorBytes);
    return low | bits_of_bytes<kHigh, kHighBit % 8, kLow>(high);
  }
}

// body(std::integral_constant<int, bits>()), for the kernels that are compiled for a number of bits.
template <class Body>
auto with_bits(std::int64_t bits, Body body) {
  switch (bits) {
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    case 5:
      return body(std::integral_constant<int, 5>());
    case 6:
      return body(std::integral_constant<int, 6>());
    default:
      return body(std::integral_constant<int, 8>());
  }
}

// The panels of a tile at some place, the same in each.
template <int kPanels>
struct Panels {
  static constexpr int kVecs = kPanels * kParts;
  const unsigned char* at[kPanels];
  const unsigned char* factors[kPanels];  // the first ones of each panel

  EW_INLINE const unsigned char* codes(int v) const { return at[v / kParts] + v % kParts * kVecBytes; }

  EW_INLINE void advance(std::int64_t bytes) {
    for (int p = 0; p < kPanels; ++p) at[p] += bytes;
  }

  // The scales, or minima, that are `offset` bytes further on. Those of 8 bits are multiplied by the factors that are
  // `place` bytes after the first.
  EW_INLINE void load_scales(Vec (&scales)[kVecs], std::int64_t offset, std::int64_t scale_bytes,
                             std::int64_t place) const {
    if (scale_bytes == 1) {
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        const int p = v / kParts, row = v % kParts * kWidth;
        scales[v] = load_signed(at[p] + offset + row) * load(reinterpret_cast<const Half*>(factors[p] + place) + row);
      }
      return;
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const unsigned char* p = at[v / kParts] + offset + v % kParts * kWidth * scale_bytes;
      scales[v] = scale_bytes == 2 ? load(reinterpret_cast<const Half*>(p)) : load(reinterpret_cast<const float*>(p));
    }
  }

  // The scales of index `step` of the group from chunk `chunk` on, whose scales are `codes` bytes further on, and its
  // minima: -2^(bits - 1) scale where there are none, -zero_point scale where there are zero points.
  EW_INLINE void load_numbers(Vec (&scales)[kVecs], Vec (&minima)[kVecs], const PanelShape& shape, std::int64_t codes,
                              std::int64_t chunk, int step) const {
    const std::int64_t offset = codes + step * kPanelRows * shape.scale_bytes, place = shape.factors_at(chunk);
    load_scales(scales, offset, shape.scale_bytes, place);
    if (shape.minima) {
      load_scales(minima, offset + shape.scales_bytes(), shape.scale_bytes, place + kFactorBytes);
      if (shape.zero_points)
        for (int v = 0; v < kVecs; ++v) minima[v] = splat(0.0f) - minima[v] * scales[v];
    } else {
      const Vec zero = splat(-static_cast<float>(1 << (shape.bits - 1)));
      for (int v = 0; v < kVecs; ++v) minima[v] = zero * scales[v];
    }
  }

  EW_INLINE void prefetch(int bytes, std::int64_t ahead) const {
    for (int p = 0; p < kPanels; ++p)
      for (int line = 0; line < bytes; line += 64) __builtin_prefetch(at[p] + ahead + line, 0, 3);
  }
};

// The sums of a tile to out [kRows, stride], the panels' rows one after another.
template <int kRows, int kVecs>
EW_INLINE void store_sums(const Vec (&sums)[kRows][kVecs], float* out, std::int64_t stride) {
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) store(out + r * stride + v * kWidth, sums[r][v]);
}

}  // namespace
}  // namespace ew
