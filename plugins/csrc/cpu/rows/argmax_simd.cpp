// The largest element of a row, and the plain read with which benchmarks compare.
#include "cpu/rows/argmax.h"
#include "cpu/simd/simd.h"
namespace ew {
namespace {

// Largest of x, and in *odd whether any element is NaN or infinite: x * 0 is then NaN, and so is every sum with it.
inline float largest_of(const float* x, std::int64_t size, bool* odd) {
  Vec top[8], zeros[8];
  for (int j = 0; j < 8; ++j) {
    top[j] = splat(-__builtin_inff());
    zeros[j] = splat(0.0f);
  }
  std::int64_t i = 0;
  for (; i + 8 * kWidth <= size; i += 8 * kWidth)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      Vec v = load(x + i + j * kWidth);
      top[j] = max(v, top[j]);
      zeros[j] = fma(v, splat(0.0f), zeros[j]);
    }
  for (int j = 1; j < 8; ++j) {
    top[0] = max(top[j], top[0]);
    zeros[0] = zeros[0] + zeros[j];
  }
  float best = largest(top[0]), zero = sum(zeros[0]);
  for (; i < size; ++i) {
    best = x[i] > best ? x[i] : best;
    zero += x[i] * 0.0f;
  }
  *odd |= zero != 0.0f || zero != zero;
  return best;
}

// Finds the first chunk that holds the maximum, then its first element with that value: one pass over memory.
// A row with a NaN has no largest element: index -1, value NaN.
inline void argmax(const float* x, std::int64_t size, std::int64_t* index, float* value) {
  constexpr std::int64_t chunk = 4096;
  float best = -__builtin_inff();
  std::int64_t best_chunk = 0;
  bool odd = false;
  for (std::int64_t i = 0; i < size; i += chunk) {
    float top = largest_of(x + i, size - i < chunk ? size - i : chunk, &odd);
    if (top > best) {
      best = top;
      best_chunk = i;
    }
  }
  *value = best;
  *index = best_chunk;
  for (std::int64_t i = 0; odd && i < size; ++i)  // infinities are no harm, NaN is
    if (x[i] != x[i]) {
      *value = x[i];
      *index = -1;
      return;
    }
  if (best == -__builtin_inff()) return;  // nothing but -inf: all tie, index 0
  while (x[*index] != best) ++*index;
}

inline float read_sum(const float* x, std::int64_t size) {
  Vec total[8];
  for (Vec& t : total) t = splat(0.0f);
  for (std::int64_t i = 0; i + 8 * kWidth <= size; i += 8 * kWidth)
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) total[j] = total[j] + load(x + i + j * kWidth);
  for (int j = 1; j < 8; ++j) total[0] = total[0] + total[j];
  return sum(total[0]);
}

}  // namespace

EW_DEFINE_CPU_KERNEL(argmax_kernel, argmax);
EW_DEFINE_CPU_KERNEL(read_sum_kernel, read_sum);

}  // namespace ew
