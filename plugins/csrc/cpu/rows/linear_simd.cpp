// Products of a few rows with the rows of a large weight, which is read only once.
#include "cpu/rows/linear.h"
#include "cpu/simd/simd.h"

namespace ew {
namespace {

// R rows of x with C outputs: each sum has one accumulator and one order, whatever R and C are, so that a row's result
// does not depend on its company. Eight chains or more hide the latency of a multiply-add.
template <int R, int C, class Elem>
inline void dots(const float* x, const Elem* weight, std::int64_t size, float sums[R][C]) {
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = splat(0.0f);
  std::int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    Vec w[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) w[c] = load(weight + c * size + i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec v = load(x + r * size + i);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = fma(v, w[c], acc[r][c]);
    }
  }
  if (const int rest = static_cast<int>(size - i); rest > 0)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec v = load_part(x + r * size + i, rest);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = fma(v, load_part(weight + c * size + i, rest), acc[r][c]);
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[r][c] = sum(acc[r][c]);
}

template <int R, int C, class Elem>
inline void outputs(const LinearArgs& args, const float* x, const Elem* weight, std::int64_t at, float* out,
                    std::int64_t stride) {
  float sums[R][C];
  dots<R, C, Elem>(x, weight + at * args.size, args.size, sums);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      const float scale = sizeof(Elem) == 1 ? args.scales[at + c] : 1.0f;
      out[r * stride + c] = sums[r][c] * scale + args.bias[at + c];
    }
}

template <int R, class Elem>
void linear_rows(const LinearArgs& args, const float* x, const Elem* weight, std::int64_t begin, std::int64_t end,
                 float* out, std::int64_t stride) {
  constexpr int C = R == 1 ? 8 : (kWidth == 16 ? 16 : 8) / R;  // accumulators: half of the registers
  std::int64_t o = begin;
  for (; o + C <= end; o += C) outputs<R, C>(args, x, weight, o, out + o - begin, stride);
  for (; o < end; ++o) outputs<R, 1>(args, x, weight, o, out + o - begin, stride);
}

template <class Elem>
void linear_of(const LinearArgs& args, const Elem* weight, std::int64_t begin, std::int64_t end, float* out,
               std::int64_t stride) {
  std::int64_t r = 0;
  for (; r + 4 <= args.rows; r += 4)
    linear_rows<4>(args, args.x + r * args.size, weight, begin, end, out + r * stride, stride);
  for (; r + 2 <= args.rows; r += 2)
    linear_rows<2>(args, args.x + r * args.size, weight, begin, end, out + r * stride, stride);
  for (; r < args.rows; ++r) linear_rows<1>(args, args.x + r * args.size, weight, begin, end, out + r * stride, stride);
}

inline void linear(const LinearArgs& args, std::int64_t begin, std::int64_t end, float* out, std::int64_t stride) {
  if (args.weight)
    linear_of(args, args.weight, begin, end, out, stride);
  else
    linear_of(args, args.codes, begin, end, out, stride);
}

}  // namespace

EW_DEFINE_CPU_KERNEL(linear_kernel, linear);

}  // namespace ew
