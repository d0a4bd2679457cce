// GreedyLinear for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include "generated/declarations/greedy_linear.h"
#include "ops/panels.h"

namespace ew::ops::greedy_linear_op {

using namespace declared::greedy_linear;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_codes(*this);
    expect_value(epsilon >= 0.0f, "epsilon", epsilon, "0 or more");
  }
};

inline void expect_shapes(const Attributes& a, const Tensor* in) {
  expect_shape("x", in[kX], {1, -1, a.columns}, "[1, N, columns]");
  expect_panels(a, in[kPanels]);
  expect_shape("wanted", in[kWanted], {1}, "[1]");
  if (in[kBias].rank >= 0) expect_shape("bias", in[kBias], {a.rows}, "[rows]");
  if (in[kNorm].rank >= 0) expect_shape("norm", in[kNorm], {a.columns}, "[columns]");
}

}  // namespace ew::ops::greedy_linear_op
