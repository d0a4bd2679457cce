// ClpEmit for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include <cmath>
#include <string>

#include "generated/declarations/clp_emit.h"
#include "ops/tensor.h"

namespace ew::ops::clp {

using namespace declared::clp_emit;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    if (std::isnan(tau)) fail("tau", "NaN", "a number");
  }

  std::int64_t extra() const { return k - 1; }
};

inline void expect_shapes(const Attributes& attributes, const Tensor* in) {
  const std::int64_t extra = attributes.extra();
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
