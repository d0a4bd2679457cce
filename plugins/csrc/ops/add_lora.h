// AddLora for every host: checks of its attribute and of the shapes that a call must have.
#pragma once

#include <string>

#include "generated/declarations/add_lora.h"
#include "ops/tensor.h"

namespace ew::ops::add_lora_op {

using namespace declared::add_lora;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {}
};

inline void expect_shapes(const Attributes& attributes, const Tensor* in, std::size_t count) {
  expect_shape("base", in[kBase], {1, -1, -1}, "[1, T, O]");
  const std::int64_t tokens = in[kBase].shape[1], outputs = in[kBase].shape[2];
  expect_shape("x", in[kX], {1, tokens, -1}, "[1, T, N]");
  expect_shape("index", in[kIndex], {tokens}, "[T]");
  expect_shape("scale", in[kScale], {tokens}, "[T]");
  if (count == kFactors || (count - kFactors) % 2 != 0)
    fail("factors", std::to_string(count - kFactors) + " tensors", "a and b of each segment");
  const std::int64_t *first = in[kFactors].shape, capacity = first[0], layers = first[1], rank = first[2];
  std::int64_t total = 0;
  for (std::size_t i = kFactors; i < count; i += 2) {
    const auto name = [&](std::size_t place) { return "factors[" + std::to_string(place - kFactors) + "]"; };
    expect_shape(name(i).c_str(), in[i], {capacity, layers, rank, in[kX].shape[2]}, "[C, L, R, N]");
    expect_shape(name(i + 1).c_str(), in[i + 1], {capacity, layers, rank, -1}, "[C, L, R, Os]");
    total += in[i + 1].shape[3];
  }
  if (total != outputs)
    fail("factors", std::to_string(total) + " outputs", "those of base, O = " + std::to_string(outputs));
  if (attributes.layer >= layers)
    fail("layer", std::to_string(attributes.layer), "less than L = " + std::to_string(layers));
}

}  // namespace ew::ops::add_lora_op
