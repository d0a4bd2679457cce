// ClpEmit for every host: ports, attributes and the shapes that a call must have.
#pragma once

#include <cmath>
#include <string>

#include "ops/attributes.h"
#include "ops/declaration.h"
#include "ops/tensor.h"

namespace ew::ops::clp {

enum Input {
  kHidden,
  kGreedy,
  kClassifierWeight,
  kClassifierBias,
  kUpWeight,
  kUpBias,
  kOutBias,
  kOutWeight,
  kOutCodes,
  kOutScales,
  kSampleRows,
  kQueryStarts,
  kInputCount
};

// kType: of the states and the heads; plugins/ops.py allows several.
template <ElementType kType>
inline constexpr Port kInputs[] = {{"hidden", kType},
                                   {"greedy", kInt64},
                                   {"classifier_weight", kFloat},
                                   {"classifier_bias", kFloat},
                                   {"up_weight", kType},
                                   {"up_bias", kType},
                                   {"out_bias", kType},
                                   {"out_weight", kType, kOptional},
                                   {"out_codes", kInt8, kOptional},
                                   {"out_scales", kFloat, kOptional},
                                   {"sample_rows", kInt64, kOptional},
                                   {"query_starts", kInt32, kOptional}};
inline constexpr Port kOutputs[] = {{"tokens", kInt64}, {"counts", kInt64}};
inline constexpr AttributeDeclaration kAttributes[] = {
    {"k", "int", "null"}, {"tau", "float", "null"}, {"activation", "int", "0"}, {"residual", "int", "0"}};
template <ElementType kType>
inline constexpr Declaration kDeclaration = {"ClpEmit", 1, kInputs<kType>, kInputCount, kOutputs, 2, kAttributes, 4};
constexpr std::int64_t kMostTokens = 16;

struct Attributes {
  std::int64_t extra;
  float tau;
  bool silu, residual;

  explicit Attributes(const AttributeReader& node) {
    const std::int64_t k = node.integer("k");
    if (k < 2 || k > kMostTokens) fail("k", std::to_string(k), "2 to " + std::to_string(kMostTokens));
    extra = k - 1;
    tau = node.number("tau");
    if (std::isnan(tau)) fail("tau", "NaN", "a number");
    silu = flag(node, "activation");
    residual = flag(node, "residual");
  }

 private:
  static bool flag(const AttributeReader& node, const char* name) {
    const std::int64_t value = node.integer(name, 0);
    if (value != 0 && value != 1) fail(name, std::to_string(value), "0 or 1");
    return value == 1;
  }
};

inline void expect_shapes(const Attributes& attributes, const Tensor* in) {
  const std::int64_t extra = attributes.extra;
  expect_shape("hidden", in[kHidden], {-1, -1}, "[N, d]");
  const std::int64_t rows = in[kHidden].shape[0], size = in[kHidden].shape[1];
  expect_shape("greedy", in[kGreedy], {rows}, "[N]");
  expect_shape("classifier_weight", in[kClassifierWeight], {-1, size}, "[classes, d]");
  if (in[kClassifierWeight].shape[0] < 1) fail("classifier_weight", "no classes", "1 or more");
  expect_shape("classifier_bias", in[kClassifierBias], {in[kClassifierWeight].shape[0]}, "[classes]");
  expect_shape("up_weight", in[kUpWeight], {extra, -1, size}, "[k - 1, h, d]");
  const std::int64_t inner = in[kUpWeight].shape[1];
  if (attributes.residual && inner != size)
    fail("up_weight", "h = " + std::to_string(inner), "d = " + std::to_string(size) + ", because residual = 1");
  expect_shape("up_bias", in[kUpBias], {extra, inner}, "[k - 1, h]");
  expect_shape("out_bias", in[kOutBias], {extra, -1}, "[k - 1, V]");
  const std::int64_t vocab = in[kOutBias].shape[1];
  if (vocab < 1) fail("out_bias", "V = 0", "1 or more");
  if ((in[kOutWeight].rank < 0) == (in[kOutCodes].rank < 0))
    fail("out_weight", in[kOutWeight].rank < 0 ? "neither" : "both", "either it or out_codes");
  if ((in[kOutCodes].rank < 0) != (in[kOutScales].rank < 0))
    fail("out_scales", "only one of the two", "both or neither of it and out_codes");
  if ((in[kSampleRows].rank < 0) != (in[kQueryStarts].rank < 0))
    fail("query_starts", "only one of the two", "both or neither of it and sample_rows");
  if (in[kSampleRows].rank >= 0) {
    expect_shape("sample_rows", in[kSampleRows], {rows}, "[N]");
    expect_shape("query_starts", in[kQueryStarts], {-1}, "[B + 1]");
    if (in[kQueryStarts].shape[0] < 1) fail("query_starts", "nothing", "at least one start");
  }
  if (in[kOutCodes].rank < 0) {
    expect_shape("out_weight", in[kOutWeight], {extra, vocab, inner}, "[k - 1, V, h]");
  } else {
    expect_shape("out_codes", in[kOutCodes], {extra, vocab, inner}, "[k - 1, V, h]");
    expect_shape("out_scales", in[kOutScales], {extra, vocab}, "[k - 1, V]");
  }
}

}  // namespace ew::ops::clp
