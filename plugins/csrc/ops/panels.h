// Checks of a matrix of codes, for every op that reads one.
#pragma once

#include <string>

#include "layout/panel.h"
#include "ops/attributes.h"
#include "ops/tensor.h"

namespace ew::ops {

// The attributes that plugins/ops names CODE_ATTRIBUTES, each in its range. prefix: of their names.
template <class Attributes>
void expect_codes(const Attributes& a, const std::string& prefix = "") {
  const auto expect = [&](bool holds, const char* name, std::int64_t value, const char* expected) {
    expect_value(holds, (prefix + name).c_str(), value, expected);
  };
  expect(a.bits != 7, "bits", a.bits, "2, 3, 4, 5, 6 or 8");
  expect(a.block == kHalfChunk || a.block % kChunkColumns == 0, "block", a.block, "16 or a multiple of 32");
  expect(a.scale_bits == 16 || a.scale_bits == 32, "scale_bits", a.scale_bits, "16 or 32");
}

template <class Attributes>
void expect_panels(const Attributes& a, const Tensor& panels) {
  const PanelShape shape = panel_shape(a);
  expect_shape("panels", panels, {shape.panels(), shape.panel_bytes()}, "[panels, bytes of a panel]");
}

}  // namespace ew::ops
