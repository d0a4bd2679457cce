// GreedySample for every host: ports and the shape that a call must have.
#pragma once

#include "ops/declaration.h"
#include "ops/tensor.h"

namespace ew::ops::greedy {

enum Input { kLogits };

// Logits are float32 in every graph.
inline constexpr Port kInputs[] = {{"logits", kFloat}};
inline constexpr Port kOutputs[] = {{"tokens", kInt64}};
inline constexpr Declaration kDeclaration = {"GreedySample", 1, kInputs, 1, kOutputs, 1, nullptr, 0};

inline void expect_shapes(const Tensor* in) {
  expect_shape("logits", in[kLogits], {-1, -1}, "[N, V]");
  if (in[kLogits].shape[1] < 1) fail("logits", "V = 0", "1 or more");
}

}  // namespace ew::ops::greedy
