// The last step of a product: bias, gate and residual are added to its sums on their way to memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

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

// Add the bias to a panel's sums.
inline void add_bias(const BlockLinearArgs& args, std::int64_t panel, float* sums) {
  const std::int64_t begin = panel * kPanelRows, count = std::min<std::int64_t>(args.rows - begin, kPanelRows);
  for (std::int64_t i = 0; i < count; ++i) sums[i] += args.bias[begin + i];
}

// Fetch the lines of out that finish_row writes: a store that misses would hold up those after it.
inline void prefetch_result(const BlockLinearArgs& args, std::int64_t token, const PanelPair& pair) {
  if (!args.out) return;
  const char* at = reinterpret_cast<const char*>(args.out + token * args.width + pair.first * kPanelRows);
  __builtin_prefetch(at, 1, 3);
  __builtin_prefetch(at + 64, 1, 3);
}

// Compare the best result with `count` more, of rows `first` on; what is left of `results` [kPairRows] is overwritten.
inline void update_best(RowBest& best, float* results, std::int64_t first, std::int64_t count) {
  for (std::int64_t i = count; i < kPairRows; ++i) results[i] = -std::numeric_limits<float>::infinity();
  Vec most = load(results), zeros = load(results) * splat(0.0f);
  for (int i = kWidth; i < kPairRows; i += kWidth) {
    most = max(load(results + i), most);
    zeros = fma(load(results + i), splat(0.0f), zeros);
  }
  if (!(sum(zeros) == 0.0f))  // a number is infinite, or NaN
    for (std::int64_t i = 0; i < count; ++i)
      if (results[i] != results[i]) best.index = -1;
  const float value = largest(most);
  if (best.index < 0 || !(value > best.value)) return;
  std::int64_t place = 0;
  while (results[place] != value) ++place;
  best = {value, static_cast<std::int32_t>(first + place)};
}

// Write one token's sums [kPairRows] of a pair of panels, and choose among them where there is a `best`.
__attribute__((noinline)) void finish_row(const BlockLinearArgs& args, std::int64_t token, const PanelPair& pair,
                                          float* sums, RowBest* best) {
  if (args.bias) {
    add_bias(args, pair.first, sums);
    add_bias(args, pair.second, sums + kPanelRows);
  }
  const std::int64_t first = pair.first * kPanelRows;
  const std::int64_t width = std::min<std::int64_t>(args.width - first, args.gate ? kPanelRows : kPairRows);
  if (args.gate)
    for (int i = 0; i < kPanelRows; i += kWidth)
      store(sums + i, through_gate(args, load(sums + i), load(sums + kPanelRows + i)));
  if (best) update_best(*best, sums, first, width);
  if (!args.out) return;
  const std::int64_t place = token * args.width + first;
  if (args.residual)
    for (std::int64_t i = 0; i < width; ++i) args.out[place + i] = args.residual[place + i] + sums[i];
  else
    for (std::int64_t i = 0; i < width; ++i) args.out[place + i] = sums[i];
}

}  // namespace
}  // namespace ew
