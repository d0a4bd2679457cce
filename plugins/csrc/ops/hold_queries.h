// HoldQueries for every host: the check of the shapes that a call must have.
#pragma once

#include "generated/declarations/hold_queries.h"
#include "ops/tensor.h"

namespace ew::ops::hold {

using namespace declared::hold_queries;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {}
};

inline void expect_shapes(const Tensor* in) {
  expect_shape("query", in[kQuery], {-1, -1, -1}, "[T, Hq, D]");
  const std::int64_t tokens = in[kQuery].shape[0], heads = in[kQuery].shape[1], dim = in[kQuery].shape[2];
  expect_shape("ring", in[kRing], {-1, heads, -1, dim}, "[S, Hq, R, D]");
  if (in[kRing].shape[2] < 1) fail("ring", "R = 0", "1 or more");
  expect_shape("query_starts", in[kQueryStarts], {-1}, "[B + 1]");
  if (in[kQueryStarts].shape[0] < 1) fail("query_starts", "shape [0]", "[B + 1]");
  expect_shape("slots", in[kSlots], {in[kQueryStarts].shape[0] - 1}, "[B]");
  expect_shape("position_ids", in[kPositionIds], {tokens}, "[T]");
}

}  // namespace ew::ops::hold
