// GreedySample for every host: the check of the shape that a call must have.
#pragma once

#include "generated/declarations/greedy_sample.h"
#include "ops/tensor.h"

namespace ew::ops::greedy {

using namespace declared::greedy_sample;

// Logits are float32 in every graph, so hosts declare kDeclaration<kFloat> alone.
struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader&) {}
};

inline void expect_shapes(const Tensor* in) {
  expect_shape("logits", in[kLogits], {-1, -1}, "[N, V]");
  if (in[kLogits].shape[1] < 1) fail("logits", "V = 0", "1 or more");
}

}  // namespace ew::ops::greedy
