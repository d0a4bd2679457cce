// BlockLinear on the CPU: products of rows with a matrix of codes that has a scale for each block, or of bfloat16.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

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
  const float* norm = nullptr;      // may be null
  float* out = nullptr;             // may be null with `chosen`
  std::int64_t* chosen = nullptr;   // [tokens]: index of each row's largest result, as GreedySample has it; may be null
  std::int64_t tokens = 0;
  float slope = 1.0f, limit = 0.0f;  // of a mixture's gate: plugins/ops: MIXTURE_GATES

  PanelShape shape() const { return panel_shape(*this); }
};

// The largest of some of a row's results, the first among equals.
struct RowBest {
  float value;
  std::int32_t index;  // -1: one of them is NaN
};

// Rows [begin, begin + count) of the prepared ones with a pair of panels.
struct BlockTask {
  const PreparedRows* rows;
  std::int64_t begin, count, pair;
  RowBest* best;  // [count], brought up to date; null where nobody asks
};

// The panels of a pair: two that follow each other, or with a gate one and that of the rows it gates.
struct PanelPair {
  std::int64_t first, second;  // second: no panel of the matrix where a last one is left over

  static std::int64_t pairs(const BlockLinearArgs& args) {
    return args.gate ? args.shape().panels() / 2 : (args.shape().panels() + 1) / 2;
  }
  static PanelPair of(const BlockLinearArgs& args, std::int64_t pair) {
    if (args.gate) return {pair, pair + pairs(args)};
    return {2 * pair, 2 * pair + 1};
  }
};

// Turn row `token` of x into what the products read.
EW_DOT_KERNEL(void, prepare_row_kernel, const BlockLinearArgs&, const PreparedRows&, std::int64_t token);
// Compute a task's part of out, with codes.
EW_DOT_KERNEL(void, block_linear_kernel, const BlockLinearArgs&, const BlockTask&);
// The same with bfloat16.
EW_BF16_KERNEL(void, bfloat16_linear_kernel, const BlockLinearArgs&, const BlockTask&);

// How a call is divided into tasks.
inline constexpr std::int64_t kWorthwhile = 1 << 17;  // multiply-adds: about the price of waking a thread
inline constexpr std::int64_t kRowBytes = 3 << 17;    // prepared rows of a task: they stay in a core's second cache
inline constexpr std::int64_t kTasks = 64;            // about as many as the threads of a call share

// The most rows of a task, each of `row_bytes` prepared bytes: whole tiles.
inline std::int64_t most_task_rows(std::int64_t row_bytes) {
  return std::max<std::int64_t>(kRowBytes / row_bytes / 12 * 12, 12);
}

// What the activations of a call become, and the kernel that multiplies them.
Activations activations_of(const BlockLinearArgs& args);
decltype(block_linear_kernel()) product_kernel(const BlockLinearArgs& args);

// What a call works with, kept for the next one.
struct BlockLinearScratch {
  FloatBuffer rows;
  std::vector<RowBest> best;  // [runs of pairs][tokens]
};

// A whole call, divided among the host's threads. No token's result depends on the others, or on the threads.
void block_linear(const BlockLinearArgs& args, BlockLinearScratch& scratch, const Parallel& parallel);

}  // namespace ew
