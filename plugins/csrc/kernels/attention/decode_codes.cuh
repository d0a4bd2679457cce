// Codes of two, four and eight bits as halves, two at a time, without a conversion: a code's bits in the fraction of a
// half whose exponent is that of 1024 make 1024 + code * 2^position, and one fma takes the rest away exactly.
#pragma once

#include "kernels/device/device.cuh"

namespace ew {

// The middle of the codes' range, which they are less as halves. Products are then of numbers near zero, so that
// rounding a scale to a half costs half as much.
template <int kBits>
constexpr int kCodeMiddle = 1 << (kBits - 1);

// The bits of the half n, 1 to 2047, and of it twice in a word.
EW_DEVICE constexpr std::uint32_t half_of_integer(int n) {
  int exponent = 0;
  while ((n >> exponent) > 1) ++exponent;
  return static_cast<std::uint32_t>(((exponent + 15) << 10) | ((n << (10 - exponent)) & 0x3ff));
}
EW_DEVICE constexpr std::uint32_t both(std::uint32_t half) { return half | (half << 16); }

// The code at bit kPosition of each half of `codes`, from its bits up to 10, less the middle.
template <int kBits, int kPosition>
EW_DEVICE std::uint32_t codes_at(std::uint32_t codes) {
  constexpr std::uint32_t kMask = both(((1u << kBits) - 1) << kPosition), kMagic = both(0x6400);
  constexpr int kExcess = (1024 >> kPosition) + kCodeMiddle<kBits>;
  const std::uint32_t with_magic = (codes & kMask) | kMagic;
  if constexpr (kPosition == 0)
    return half2_sub(with_magic, both(half_of_integer(kExcess)));
  else
    return half2_fma(with_magic, both(static_cast<std::uint32_t>(15 - kPosition) << 10),
                     both(0x8000u | half_of_integer(kExcess)));
}

// Pairs of codes of two words: code k of `first` in the lower half, that of `second` in the upper one.
template <int kBits>
EW_DEVICE void expand(std::uint32_t (&pairs)[32 / kBits], std::uint32_t first, std::uint32_t second) {
  if constexpr (kBits == 8) {
    EW_UNROLL
    for (int k = 0; k < 4; ++k)
      pairs[k] = codes_at<8, 0>(byte_permute(first, second, 0x0400u + 0x1111u * static_cast<unsigned>(k)));
  } else {
    EW_UNROLL
    for (int h = 0; h < 2; ++h) {
      constexpr int kHalf = 16 / kBits;
      const std::uint32_t low = byte_permute(first, second, h == 0 ? 0x5410u : 0x7632u), high = low >> 8;
      EW_UNROLL
      for (int b = 0; b < 2; ++b) {
        std::uint32_t* to = pairs + kHalf * h + kHalf / 2 * b;
        const std::uint32_t from = b == 0 ? low : high;
        to[0] = codes_at<kBits, 0>(from);
        to[1] = codes_at<kBits, kBits>(from);
        if constexpr (kBits == 2) {
          to[2] = codes_at<2, 4>(from);
          to[3] = codes_at<2, 6>(from);
        }
      }
    }
  }
}

// kBytes of shared memory as words, loaded as wide as they are aligned: to kBytes, or to 16.
template <int kBytes>
EW_DEVICE void load_words(std::uint32_t (&words)[(kBytes + 3) / 4], const unsigned char* from) {
  if constexpr (kBytes == 1) {
    words[0] = *from;
  } else if constexpr (kBytes == 2) {
    words[0] = *reinterpret_cast<const std::uint16_t*>(from);
  } else if constexpr (kBytes == 4) {
    words[0] = *reinterpret_cast<const std::uint32_t*>(from);
  } else if constexpr (kBytes == 8) {
    const Words2 w = *reinterpret_cast<const Words2*>(from);
    words[0] = w.x[0];
    words[1] = w.x[1];
  } else {
    EW_UNROLL
    for (int n = 0; n < kBytes / 16; ++n) {
      const Words4 w = reinterpret_cast<const Words4*>(from)[n];
      EW_UNROLL
      for (int j = 0; j < 4; ++j) words[4 * n + j] = w.x[j];
    }
  }
}

// Half n of words.
template <int kWords>
EW_DEVICE float half_in(const std::uint32_t (&words)[kWords], int n) {
  return half_to_float(static_cast<std::uint16_t>(words[n / 2] >> (16 * (n % 2))));
}

}  // namespace ew
