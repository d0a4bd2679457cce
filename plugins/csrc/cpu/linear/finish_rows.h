// The last step of a product: bias, gate and residual are added to its sums on their way to memory.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/linear/block_linear.h"
#include "cpu/simd/simd.h"
#include "cpu/simd/vector_math.h"

namespace ew {
namespace {

constexpr int kPairRows = 2 * kPanelRows;

// x / (1 + e^-y); exp is good up to 88.
inline Vec times_sigmoid(Vec x, Vec y) { return x / (splat(1.0f) + exp(min(splat(80.0f), splat(0.0f) - y))); }

// SiLU, GELU in its tanh form, GELU: plugins/ops: GATES.
inline Vec activate(std::int64_t gate, Vec x) {
  if (gate == 1) return times_sigmoid(x, x);
  if (gate == 2) {
    constexpr float kTwice = 1.5957691216f;  // 2 sqrt(2 / pi)
    return times_sigmoid(x, splat(kTwice) * fma(splat(0.044715f) * x * x, x, x));
  }
  float lanes[kWidth];
  store(lanes, x);
  for (float& lane : lanes) lane *= 0.5f * (1.0f + std::erf(lane * 0.70710678118f));
  return load(lanes);
}

// activation(x) times y: of a gate, and of what it multiplies.
inline Vec through_gate(const BlockLinearArgs& args, Vec x, Vec y) {
  if (args.gate < 4) return activate(args.gate, x) * y;
  const Vec limit = splat(args.limit), gate = min(limit, x), other = max(splat(-args.limit), min(limit, y));
  return times_sigmoid(gate, splat(args.slope) * gate) * (other + splat(1.0f));
}

// Write one token's sums [kPairRows] of a pair of panels, the first of which has the rows from `begin` on.
__attribute__((noinline)) void finish_row(const BlockLinearArgs& args, std::int64_t token, std::int64_t begin,
                                          float* sums) {
  const std::int64_t count = std::min<std::int64_t>(args.rows - begin, kPairRows);
  if (args.bias)
    for (std::int64_t i = 0; i < count; ++i) sums[i] += args.bias[begin + i];
  std::int64_t first = begin, width = count;
  if (args.gate) {
    for (int i = 0; i < kPanelRows; i += kWidth)
      store(sums + i, through_gate(args, load(sums + i), load(sums + kPanelRows + i)));
    first = begin / 2, width = kPanelRows;
  }
  const std::int64_t place = token * args.width + first;
  if (args.residual)
    for (std::int64_t i = 0; i < width; ++i) args.out[place + i] = args.residual[place + i] + sums[i];
  else
    for (std::int64_t i = 0; i < width; ++i) args.out[place + i] = sums[i];
}

}  // namespace
}  // namespace ew
