// BlockLinear for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include <string>

#include "generated/declarations/block_linear.h"
#include "ops/panels.h"

namespace ew::ops::block_linear_op {

using namespace declared::block_linear;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_codes(*this);
    expect_value(epsilon >= 0.0f, "epsilon", epsilon, "0 or more");
    if (gate) expect_value(rows % (2 * kPanelRows) == 0, "rows", rows, "a multiple of 32 with a gate");
    expect_value(width == (gate ? rows / 2 : rows), "width", width, gate ? "half of the rows" : "the number of rows");
  }
};

// Rows of x, which is [1, T, columns], or [T, heads, columns / heads] as attention leaves it.
inline std::int64_t tokens_of(const Attributes& a, const Tensor& x) {
  const bool by_head = x.rank == 3 && x.shape[1] > 0 && x.shape[2] > 0 && x.shape[2] < a.columns &&
                       a.columns % x.shape[2] == 0 && x.shape[1] == a.columns / x.shape[2];
  return by_head ? x.shape[0] : x.shape[1];
}

inline void expect_shapes(const Attributes& a, const Tensor* in) {
  const std::int64_t tokens = tokens_of(a, in[kX]);
  if (in[kX].rank != 3 || in[kX].shape[0] != tokens)
    expect_shape("x", in[kX], {1, -1, a.columns}, "[1, T, columns] or [T, heads, columns / heads]");
  expect_panels(a, in[kPanels]);
  if (in[kBias].rank >= 0) expect_shape("bias", in[kBias], {a.rows}, "[rows]");
  if (in[kResidual].rank >= 0) expect_shape("residual", in[kResidual], {1, tokens, a.width}, "[1, T, width]");
  if (in[kNorm].rank >= 0) expect_shape("norm", in[kNorm], {a.columns}, "[columns]");
}

}  // namespace ew::ops::block_linear_op
