// One lane's online softmax over the scores of one tile. Include simd.h first.
#pragma once

#include "cpu/attention/attention_kernels.h"
#include "cpu/simd/vector_math.h"

namespace ew {
namespace {

constexpr float kMasked = -__builtin_inff();

// Cap the lane's scores in [begin, end) and return the largest; outside [low, high) they become -inf.
inline float cap_and_mask(float* scores, int begin, int end, int low, int high, float softcap) {
  Vec top = splat(kMasked);
  if (softcap > 0.0f)
    for (int t = begin; t < end; t += kWidth) store(scores + t, splat(softcap) * tanh(load(scores + t)));
  for (int t = begin; t < low; ++t) scores[t] = kMasked;
  for (int t = high > begin ? high : begin; t < end; ++t) scores[t] = kMasked;
  for (int t = begin; t < end; t += kWidth) top = max(load(scores + t), top);
  return largest(top);
}

// Scores in [begin, end) become weights e^(score - maximum); returns their sum.
inline float weights_from_scores(float* scores, int begin, int end, float maximum) {
  Vec total = splat(0.0f);
  const Vec shift = splat(maximum);
  for (int t = begin; t < end; t += kWidth) {
    Vec w = exp(load(scores + t) - shift);
    store(scores + t, w);
    total = total + w;
  }
  return sum(total);
}

inline void multiply(float* x, std::int64_t size, float factor) {  // size: a multiple of kWidth
  const Vec f = splat(factor);
  for (std::int64_t i = 0; i < size; i += kWidth) store(x + i, load(x + i) * f);
}

// Turn the lane's scores of a tile, of which `top` is the largest, into weights, and bring what the lane has summed so
// far to the new maximum.
inline void update_lane(float* scores, int begin, int end, float top, float* maximum, float* denominator, float* sums,
                        std::int64_t stride) {
  if (top <= *maximum || top == kMasked) {
    // -inf - -inf is NaN: a lane that has seen nothing yet subtracts 0 and gets zeros
    *denominator += weights_from_scores(scores, begin, end, *maximum == kMasked ? 0.0f : *maximum);
    return;
  }
  float shrink = exp(*maximum - top);
  *denominator = *denominator * shrink + weights_from_scores(scores, begin, end, top);
  *maximum = top;
  multiply(sums, stride, shrink);
}

}  // namespace
}  // namespace ew
