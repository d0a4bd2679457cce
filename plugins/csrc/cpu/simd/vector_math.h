// exp and tanh of a Vec, by our own minimax polynomials with float coefficients. Include simd.h first.
#pragma once

namespace ew {
namespace {

// e^x for x <= 88, relative error about 1e-7; below -87.3 (where floats turn subnormal) exactly 0. NaN stays NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 is split so that n ln 2 is subtracted without loss.
inline Vec exp(Vec x) {
  const Vec lowest = splat(-87.3f);
  Vec clamped = max(lowest, x);
  Vec n = round_even(clamped * splat(1.442695041f));
  Vec r = fma(n, splat(-0.693359375f), clamped);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(0.0013813149f);
  p = fma(p, r, splat(0.00836942f));
  p = fma(p, r, splat(0.041668456f));
  p = fma(p, r, splat(0.16666515f));
  p = fma(p, r, splat(0.49999994f));
  p = fma(p * r, r, r) + splat(1.0f);
  return where_less(x, lowest, splat(0.0f), times_pow2(p, n));
}

inline float exp(float x) {
  float lanes[kWidth];
  store(lanes, exp(splat(x)));
  return lanes[0];
}

// tanh x: an odd polynomial near 0, where 1 - 2 / (e^2|x| + 1) would cancel, and that formula elsewhere.
inline Vec tanh(Vec x) {
  Vec magnitude = max(x, splat(0.0f) - x);
  Vec z = x * x;
  Vec p = splat(-0.0057169935f);
  p = fma(p, z, splat(0.020650536f));
  p = fma(p, z, splat(-0.05374348f));
  p = fma(p, z, splat(0.13331491f));
  p = fma(p, z, splat(-0.33333284f));
  Vec near = fma(p * z, x, x);
  Vec far = splat(1.0f) - splat(2.0f) / (exp(min(splat(80.0f), magnitude + magnitude)) + splat(1.0f));
  far = where_less(x, splat(0.0f), splat(0.0f) - far, far);
  return where_less(magnitude, splat(0.625f), near, far);
}

}  // namespace
}  // namespace ew
