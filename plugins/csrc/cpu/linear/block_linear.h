// BlockLinear on the CPU: products of rows with a matrix of codes that has a scale for each block, or of bfloat16.
#pragma once

#include <cstdint>

#include "cpu/linear/prepared_rows.h"
#include "cpu/simd/variants.h"
#include "cpu/threads/parallel.h"
#include "generated/attributes/block_linear.h"
#include "layout/panel.h"

namespace ew {

// One call of BlockLinear: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct BlockLinearArgs : declared::block_linear::AttributeValues {
  const float* x = nullptr;
  const unsigned char* panels = nullptr;
  const float* bias = nullptr;      // may be null
  const float* residual = nullptr;  // may be null, may be out
  float* out = nullptr;
  std::int64_t tokens = 0;

  PanelShape shape() const { return panel_shape(*this); }
};

// Rows [begin, begin + count) of the prepared ones with the panels from `panel` on, two of them or the last one alone.
struct BlockTask {
  const PreparedRows* rows;
  std::int64_t begin, count, panel;
};

// Turn row `token` of x into what the products read.
EW_DOT_KERNEL(void, prepare_row_kernel, const BlockLinearArgs&, const PreparedRows&, std::int64_t token);
// Compute a task's part of out, with codes.
EW_DOT_KERNEL(void, block_linear_kernel, const BlockLinearArgs&, const BlockTask&);
// The same with bfloat16.
EW_BF16_KERNEL(void, bfloat16_linear_kernel, const BlockLinearArgs&, const BlockTask&);

// What a call works with, kept for the next one.
struct BlockLinearScratch {
  FloatBuffer rows;
};

// A whole call, divided among the host's threads. No token's result depends on the others, or on the threads.
void block_linear(const BlockLinearArgs& args, BlockLinearScratch& scratch, const Parallel& parallel);

}  // namespace ew
