// Checks of a matrix in panels, for every op that reads one.
#pragma once

#include "layout/panel.h"
#include "ops/attributes.h"
#include "ops/tensor.h"

namespace ew::ops {

// The attributes that plugins/ops names CODE_ATTRIBUTES, each in its range.
template <class Attributes>
void expect_codes(const Attributes& a) {
  const bool is_known = a.bits <= 6 || a.bits == 8 || a.bits == kNumberBits;
  expect_value(is_known, "bits", a.bits, "2, 3, 4, 5, 6, 8, or 16 for bfloat16");
  expect_value(a.block == kHalfChunk || a.block % kChunkColumns == 0, "block", a.block, "16 or a multiple of 32");
  expect_value(a.scale_bits == 16 || a.scale_bits == 32, "scale_bits", a.scale_bits, "16 or 32");
  if (a.bits != kNumberBits) return;
  expect_value(a.block == kChunkColumns, "block", a.block, "32 with numbers of 16 bits, which have no scales");
  expect_value(a.minima == 0, "minima", a.minima, "0 with numbers of 16 bits");
}

template <class Attributes>
void expect_panels(const Attributes& a, const Tensor& panels) {
  const PanelShape shape = panel_shape(a);
  expect_shape("panels", panels, {shape.panels(), shape.panel_bytes()}, "[panels, bytes of a panel]");
}

}  // namespace ew::ops
