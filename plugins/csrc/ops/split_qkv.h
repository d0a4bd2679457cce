// SplitQkv for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include <string>
#include <utility>

#include "generated/declarations/split_qkv.h"
#include "ops/tensor.h"

namespace ew::ops::split {

using namespace declared::split_qkv;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_value(epsilon >= 0.0f, "epsilon", epsilon, "0 or more");
  }

  std::int64_t width() const { return (query_heads + kv_heads) * head_dim + kv_heads * value_dim; }
};

inline void expect_shapes(const Attributes& a, const Tensor* in) {
  expect_shape("packed", in[kPacked], {1, -1, a.width()}, "[1, T, (Hq + Hkv) D + Hkv Dv]");
  for (const auto& [first, second] : {std::pair{kCos, kSin}, std::pair{kQueryNorm, kKeyNorm}})
    if ((in[first].rank < 0) != (in[second].rank < 0))
      fail(kInputs<kFloat>[second].name, "only one of the two",
           std::string("both or neither of it and ") + kInputs<kFloat>[first].name);
  if (in[kCos].rank >= 0) {
    expect_shape("cos", in[kCos], {1, in[kPacked].shape[1], -1}, "[1, T, R]");
    expect_shape("sin", in[kSin], {1, in[kPacked].shape[1], in[kCos].shape[2]}, "[1, T, R]");
    if (2 * in[kCos].shape[2] > a.head_dim)
      fail("cos", "R = " + std::to_string(in[kCos].shape[2]), "at most half of D = " + std::to_string(a.head_dim));
  }
  for (Input norm : {kQueryNorm, kKeyNorm})
    if (in[norm].rank >= 0) expect_shape(kInputs<kFloat>[norm].name, in[norm], {a.head_dim}, "[D]");
}

}  // namespace ew::ops::split
