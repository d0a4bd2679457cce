// ClpEmit on the CPU: the number of tokens to emit after the next one, and these tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/threads/parallel.h"
#include "cpu/threads/scratch.h"
#include "generated/attributes/clp_emit.h"

namespace ew {

// One call of ClpEmit: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct ClpEmitArgs : declared::clp_emit::AttributeValues {
  const float* hidden = nullptr;
  const std::int64_t* greedy = nullptr;
  const float *classifier_weight = nullptr, *classifier_bias = nullptr;
  const float *up_weight = nullptr, *up_bias = nullptr;
  const float* out_bias = nullptr;
  const float* out_weight = nullptr;  // null: codes and scales
  const std::int8_t* out_codes = nullptr;
  const float* out_scales = nullptr;
  const std::int64_t* sample_rows =
      nullptr;  // null: every row may emit; else those that are the last of their sequence
  const std::int32_t* query_starts = nullptr;  // [sequences + 1], rising
  std::int64_t* tokens = nullptr;
  std::int64_t* counts = nullptr;
  std::int64_t rows = 0, size = 0, classes = 0, inner = 0, vocab = 0, sequences = 0;

  std::int64_t extra() const { return k - 1; }
};

// Memory that a call needs, kept for the next one.
struct ClpScratch {
  FloatBuffer scores;                 // classifier scores [rows, classes]
  FloatBuffer states;                 // hidden states of the rows that emit, the longest emission first
  FloatBuffer inner;                  // hidden layers of the heads, [extra][emitting rows, inner]
  FloatBuffer best;                   // largest logit of each (head, block of the vocabulary, row)
  std::vector<std::int64_t> best_at;  // and its index
  std::vector<std::int64_t> lengths;  // extra tokens of each row
  std::vector<std::int64_t> order;    // the rows that emit, the longest emission first
  std::vector<std::int64_t> counts;   // how many of them need head j
};

// A head is evaluated for the rows that emit its token, and its logits are held for one block at a time only.
void clp_emit(const ClpEmitArgs& args, ClpScratch& scratch, const Parallel& parallel);

}  // namespace ew
