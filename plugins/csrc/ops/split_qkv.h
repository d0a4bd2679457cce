// SplitQkv for every host: ports, attributes and the shapes that a call must have.
#pragma once

#include <string>
#include <utility>

#include "ops/attributes.h"
#include "ops/declaration.h"
#include "ops/tensor.h"

namespace ew::ops::split {

enum Input { kPacked, kCos, kSin, kQueryNorm, kKeyNorm, kInputCount };

// kType: of the activations that the host's kernels take; plugins/ops.py allows several.
template <ElementType kType>
inline constexpr Port kInputs[] = {{"packed", kType},
                                   {"cos", kType, kOptional},
                                   {"sin", kType, kOptional},
                                   {"query_norm", kType, kOptional},
                                   {"key_norm", kType, kOptional}};
template <ElementType kType>
inline constexpr Port kOutputs[] = {{"query", kType}, {"key", kType}, {"value", kType}};
inline constexpr AttributeDeclaration kAttributes[] = {{"query_heads", "int", "null"},
                                                       {"kv_heads", "int", "null"},
                                                       {"head_dim", "int", "null"},
                                                       {"value_dim", "int", "null"},
                                                       {"epsilon", "float", "1e-06"}};
template <ElementType kType>
inline constexpr Declaration kDeclaration = {"SplitQkv", 1, kInputs<kType>, 5, kOutputs<kType>, 3, kAttributes, 5};

struct Attributes {
  std::int64_t query_heads, kv_heads, head_dim, value_dim;
  float epsilon;

  explicit Attributes(const AttributeReader& node) {
    const std::pair<const char*, std::int64_t*> sizes[] = {
        {"query_heads", &query_heads}, {"kv_heads", &kv_heads}, {"head_dim", &head_dim}, {"value_dim", &value_dim}};
    for (const auto& [name, size] : sizes) {
      *size = node.integer(name);
      if (*size < 1) fail(name, std::to_string(*size), "1 or more");
    }
    epsilon = node.number("epsilon", 1e-6f);
    if (!(epsilon >= 0.0f)) fail("epsilon", std::to_string(epsilon), "0 or more");
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
