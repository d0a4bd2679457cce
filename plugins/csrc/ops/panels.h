// Checks of a matrix in panels, for every op that reads one.
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
  const bool is_known = a.bits <= 6 || a.bits == 8 || a.bits == kNumberBits;
  expect(is_known, "bits", a.bits, "2, 3, 4, 5, 6, 8, or 16 for bfloat16");
  expect(a.block == kHalfChunk || a.block % kChunkColumns == 0, "block", a.block, "16 or a multiple of 32");
  const bool known = a.scale_bits == 8 || a.scale_bits == 16 || a.scale_bits == 32;
  expect(known, "scale_bits", a.scale_bits, "8, 16 or 32");
  if (a.scale_bits == 8) {
    expect(kFactorColumns % a.block == 0, "block", a.block, "a divisor of 256 with scales of 8 bits");
    expect(a.minima != 2, "minima", a.minima, "0 or 1 with scales of 8 bits");
  }
  if (a.bits != kNumberBits) return;
  expect(a.block == kChunkColumns, "block", a.block, "32 with numbers of 16 bits, which have no scales");
  expect(a.minima == 0, "minima", a.minima, "0 with numbers of 16 bits");
}

template <class Attributes>
void expect_panels(const Attributes& a, const Tensor& panels) {
  const PanelShape shape = panel_shape(a);
  expect_shape("panels", panels, {shape.panels(), shape.panel_bytes()}, "[panels, bytes of a panel]");
}

}  // namespace ew::ops
