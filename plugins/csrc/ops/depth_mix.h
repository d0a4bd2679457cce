// DepthMix for every host: checks of its attribute and of the shapes that a call must have.
#pragma once

#include <cmath>
#include <string>

#include "generated/declarations/depth_mix.h"
#include "ops/tensor.h"

namespace ew::ops::depth {

using namespace declared::depth_mix;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_value(std::isfinite(scale), "scale", scale, "a finite number");
  }
};

inline void expect_shapes(const Tensor* in, std::size_t count) {
  expect_shape("query", in[kQuery], {-1, -1, -1}, "[T, Hq, D]");
  const std::int64_t *query = in[kQuery].shape, tokens = query[0], dim = query[2];
  expect_shape("key", in[kKey], {tokens, -1, dim}, "[T, Hkv, D]");
  const std::int64_t kv_heads = in[kKey].shape[1];
  expect_shape("value", in[kValue], {tokens, kv_heads, -1}, "[T, Hkv, Dv]");
  if (kv_heads < 1 || query[1] < 1 || query[1] % kv_heads != 0)
    fail("query", std::to_string(query[1]) + " heads", "a multiple of the key's " + std::to_string(kv_heads));
  if (dim < 1 || in[kValue].shape[2] < 1) fail("query and value", "an empty head", "D and Dv of 1 or more");
  if ((count - kSources) % 2 != 0)
    fail("sources", std::to_string(count - kSources) + " tensors", "a key and a value of each source");
  for (std::size_t i = kSources; i < count; ++i) {
    const std::string name = "sources[" + std::to_string(i - kSources) + "]";
    if ((i - kSources) % 2 == 0)
      expect_shape(name.c_str(), in[i], {tokens, kv_heads, dim}, "[T, Hkv, D]");
    else
      expect_shape(name.c_str(), in[i], {tokens, kv_heads, in[kValue].shape[2]}, "[T, Hkv, Dv]");
  }
}

}  // namespace ew::ops::depth
