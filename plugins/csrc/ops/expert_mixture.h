// ExpertMixture for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include "generated/declarations/expert_mixture.h"
#include "ops/panels.h"

namespace ew::ops::expert_mixture_op {

using namespace declared::expert_mixture;

// The codes of an expert's matrix.
struct Codes {
  std::int64_t bits, block, scale_bits, minima;
};

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_value(inner % kPanelRows == 0, "inner", inner, "a multiple of 16");
    expect_value(limit > 0.0f, "limit", limit, "above 0");
    expect_codes(Codes{up_bits, up_block, up_scale_bits, up_minima}, "up_");
    expect_codes(Codes{down_bits, down_block, down_scale_bits, down_minima}, "down_");
  }
};

inline void expect_matrices(const char* name, const Tensor& panels, std::int64_t experts, const PanelShape& shape) {
  expect_shape(name, panels, {experts, shape.panels(), shape.panel_bytes()}, "[E, panels, bytes of a panel]");
}

inline void expect_shapes(const Attributes& a, const Tensor* in) {
  expect_shape("x", in[kX], {-1, a.columns}, "[T, columns]");
  expect_shape("ids", in[kIds], {in[kX].shape[0], -1}, "[T, K]");
  expect_shape("weights", in[kWeights], {in[kX].shape[0], in[kIds].shape[1]}, "[T, K]");
  expect_matrices("up", in[kUp], -1, up_shape(a));
  const std::int64_t experts = in[kUp].shape[0];
  expect_matrices("down", in[kDown], experts, down_shape(a));
  if (in[kUpBias].rank >= 0) expect_shape("up_bias", in[kUpBias], {experts, 2 * a.inner}, "[E, 2 * inner]");
  if (in[kDownBias].rank >= 0) expect_shape("down_bias", in[kDownBias], {experts, a.columns}, "[E, columns]");
}

}  // namespace ew::ops::expert_mixture_op
