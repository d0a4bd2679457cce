// Halves and warp-wide matrix operations of the emulated device. A half is a float here, rounded after each operation.
// This is exact: a float holds the product of two halves, and a fused sum of them is rounded once from a double.
#include "emulation/device.h"

namespace ew {
namespace {

struct MmaOperand {
  float* c;
  const std::uint32_t *a, *b;
};

struct MatrixOperand {
  std::uint32_t* to;
  const void* row;
};

std::uint16_t half_of(std::uint32_t both, int which) { return static_cast<std::uint16_t>(both >> (16 * which)); }

std::uint32_t both_halves(std::uint32_t a, std::uint32_t b, std::uint32_t c, double (*f)(double, double, double)) {
  std::uint32_t result = 0;
  for (int i = 0; i < 2; ++i) {
    const double x = f(half_to_float(half_of(a, i)), half_to_float(half_of(b, i)), half_to_float(half_of(c, i)));
    result |= static_cast<std::uint32_t>(float_to_half(static_cast<float>(x))) << (16 * i);
  }
  return result;
}

template <bool kTransposed>
void matrices(void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m) {
      std::uint32_t word = 0;
      for (int i = 0; i < 2; ++i) {
        const int g = lane / 4, j = 2 * (lane % 4) + i;
        const int row = kTransposed ? j : g, column = kTransposed ? g : j;
        std::uint16_t bits;
        std::memcpy(&bits, static_cast<const char*>(static_cast<MatrixOperand*>(lanes[8 * m + row])->row) + 2 * column,
                    2);
        word |= static_cast<std::uint32_t>(bits) << (16 * i);
      }
      static_cast<MatrixOperand*>(lanes[lane])->to[m] = word;
    }
}

// Multiplies the matrices that the lanes hold.
template <float (*kToFloat)(std::uint16_t)>
void multiply(void* const* lanes) {
  float left[16][16], right[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaOperand& from = *static_cast<MmaOperand*>(lanes[lane]);
    const int g = lane / 4, i = 2 * (lane % 4);
    for (int h = 0; h < 2; ++h) {
      for (int r = 0; r < 4; ++r) left[g + 8 * (r % 2)][i + h + 8 * (r / 2)] = kToFloat(half_of(from.a[r], h));
      for (int r = 0; r < 2; ++r) right[i + h + 8 * r][g] = kToFloat(half_of(from.b[r], h));
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    MmaOperand& to = *static_cast<MmaOperand*>(lanes[lane]);
    for (int e = 0; e < 4; ++e) {
      const int row = lane / 4 + 8 * (e / 2), column = 2 * (lane % 4) + e % 2;
      float sum = to.c[e];
      for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
      to.c[e] = sum;
    }
  }
}

float bfloat16_to_float(std::uint16_t bits) { return bits_to_float(static_cast<std::uint32_t>(bits) << 16); }

std::uint16_t float_to_bfloat16(float x) {
  const std::uint32_t bits = float_to_bits(x);
  if (std::isnan(x)) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace

float half_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
  if (exponent == 0) return (sign ? -1.0f : 1.0f) * std::ldexp(static_cast<float>(fraction), -24);
  const std::uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return bits_to_float(sign | (wide << 23) | (fraction << 13));
}

std::uint16_t float_to_half(float x) {
  const std::uint32_t bits = float_to_bits(x);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const float size = std::fabs(x);
  if (std::isnan(x)) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (size >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00u);
  int exponent = 0;
  std::frexp(size, &exponent);                                    // size = f 2^exponent, f in [0.5, 1)
  const int unit = std::max(exponent - 11, -24);                  // of the last place
  const float rounded = std::nearbyint(std::ldexp(size, -unit));  // the default rounding is to nearest even
  const float value = std::ldexp(rounded, unit);
  if (value < 6.103515625e-05f)
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::ldexp(value, 24)));
  const std::uint32_t wide = float_to_bits(value);
  return static_cast<std::uint16_t>(sign | (((wide >> 23) - 112u) << 10) | ((wide >> 13) & 0x3ffu));
}

std::uint32_t half2_sub(std::uint32_t a, std::uint32_t b) {
  return both_halves(a, b, 0, [](double x, double y, double) { return x - y; });
}
std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b) {
  return both_halves(a, b, 0, [](double x, double y, double) { return x * y; });
}
std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return both_halves(a, b, c, [](double x, double y, double z) { return x * y + z; });
}

// The product is exact in a float, the sum of three bfloat16 in a double but for numbers 2^36 apart.
std::uint32_t bfloat2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t result = 0;
  for (int i = 0; i < 2; ++i) {
    const float x = bfloat16_to_float(half_of(a, i)), y = bfloat16_to_float(half_of(b, i));
    const double sum = static_cast<double>(x) * y + bfloat16_to_float(half_of(c, i));
    result |= static_cast<std::uint32_t>(float_to_bfloat16(static_cast<float>(sum))) << (16 * i);
  }
  return result;
}

unsigned ballot(bool vote) {
  struct Operand {
    bool vote;
    unsigned result;
  } mine{vote, 0};
  emulation::wait_for_warp("ballot", &mine, [](void* const* lanes) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) votes |= static_cast<unsigned>(static_cast<Operand*>(lanes[i])->vote) << i;
    for (int i = 0; i < 32; ++i) static_cast<Operand*>(lanes[i])->result = votes;
  });
  return mine.result;
}

void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  MmaOperand mine{c, a, b};
  emulation::wait_for_warp("mma_16x8x16", &mine, multiply<half_to_float>);
}

void mma_16x8x16_bfloat16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  MmaOperand mine{c, a, b};
  emulation::wait_for_warp("mma_16x8x16_bfloat16", &mine, multiply<bfloat16_to_float>);
}

void load_matrices(std::uint32_t (&to)[4], const void* row) {
  emulation::check_aligned(row, 16);
  MatrixOperand mine{to, row};
  emulation::wait_for_warp("load_matrices", &mine, matrices<false>);
}

void load_matrices_transposed(std::uint32_t (&to)[4], const void* row) {
  emulation::check_aligned(row, 16);
  MatrixOperand mine{to, row};
  emulation::wait_for_warp("load_matrices_transposed", &mine, matrices<true>);
}

std::uint32_t transpose_matrix(std::uint32_t x) {
  struct Operand {
    std::uint32_t x, y;
  } mine{x, 0};
  emulation::wait_for_warp("transpose_matrix", &mine, [](void* const* lanes) {
    const auto element = [lanes](int row, int column) {
      return half_of(static_cast<Operand*>(lanes[4 * row + column / 2])->x, column % 2);
    };
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = 2 * (lane % 4);
      static_cast<Operand*>(lanes[lane])->y =
          element(column, row) | (static_cast<std::uint32_t>(element(column + 1, row)) << 16);
    }
  });
  return mine.y;
}

}  // namespace ew
