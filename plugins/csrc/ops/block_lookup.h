// BlockLookup for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include "generated/declarations/block_lookup.h"
#include "ops/panels.h"

namespace ew::ops::block_lookup_op {

using namespace declared::block_lookup;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) { expect_codes(*this); }
};

inline void expect_shapes(const Attributes& a, const Tensor* in) {
  expect_panels(a, in[kPanels]);
  expect_shape("ids", in[kIds], {1, -1}, "[1, T]");
}

}  // namespace ew::ops::block_lookup_op
