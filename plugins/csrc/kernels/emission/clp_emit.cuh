// ClpEmit: a classifier decides how many tokens after the next one to emit, and only the heads that are needed run.
//
// There are four launches, whose sizes the host knows. The lengths stay on the device, so a block of a head that no row
// needs returns at once.
//   classify  a block for each row: its class scores (float), its length L in the workspace, and an emission of one
//             token.
//   up        a block for each 16 outputs of a head's hidden layer; its 8 warps share the sum over `size`, 32 inputs at
//             a time in turns, and add their sums in the order of the warps.
//   out       `parts` blocks for each head; a warp takes 16 outputs (tokens) at a time over all of `inner`, and keeps
//             the best of each row: no logits are written. The blocks' best go to the workspace.
//   emit      a warp for each row: the best of the parts, head by head, up to the first that is not finite.
//
// Tile picture of up and out. Products are mma of 16 outputs x 16 inputs (weights, A) and 16 inputs x 8 rows (states,
// B). With g = lane / 4 and i = lane % 4, a lane loads 16 bytes of the weights of outputs g and g + 8 - run i of the 4
// runs of a step, 8 numbers or 16 codes each - and the same inputs of row g; the order of inputs inside a product does
// not matter. Four lanes read 64 bytes of a row; kBatch steps are loaded before the first is used. More than 8 rows are
// taken 8 at a time, and then the weights come from the caches. The rows that need a head keep their order.
//
// A hidden layer's result z goes to the workspace as two numbers of `type`, z = high + low, where `out` reads them.
// With float sums this has an error of 2^-22 (half) or 2^-17 (bfloat16) of z, far below that of a z rounded once. Half
// holds z up to 131008; larger z saturate. Weights enter products as they are, codes as the numbers they stand for,
// exact in either type; a row's scale multiplies its sum. The best token of a row is passed on as a key of 64 bits
// whose order is that of (logit, -token), so a maximum over keys is the same in any order.
//
// This file has the arguments and the launches of single rows; clp_heads.cuh has the products. Any sizes: `size` and
// `inner` that are multiples of 8 (inner of codes: 16) are read 16 bytes at a time, others one element at a time, which
// is slower. Up to kMostRows rows. mma of bfloat16: 8.0 and later.
//
// Bytes moved: 4 classes size + 2 rows size, and for each head that any row needs 2 inner (size + 1) +
// vocab (2 inner + 2), with codes vocab (inner + 6); the rest (z, keys) is small compared with it.
#pragma once

#include "kernels/device/device.cuh"

namespace ew::clp_emit {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kEmitThreads = 128;
constexpr int kOutputs = 16, kRows = 8;  // of one product
constexpr int kBatch = 4;                // steps whose weights are loaded together
constexpr int kMostRows = 1024;          // `out` keeps a key for each row and warp in shared memory

struct Task {
  const std::uint16_t* hidden;
  const std::int64_t* greedy;
  const float *classifier_weight, *classifier_bias;
  const std::uint16_t *up_weight, *up_bias, *out_bias;
  const std::uint16_t* out_weight;
  const std::int8_t* out_codes;
  const float* out_scales;
  const std::int64_t* sample_rows;
  const std::int32_t* query_starts;
  std::int64_t *tokens, *counts;
  std::int32_t* lengths;  // [rows]
  std::uint16_t* states;  // [extra][ceil(rows / kRows)][states_size], the last 2 kRows padded(inner)
  std::uint64_t* best;    // [extra][rows][parts], rows being those that want the head
  int rows, size, classes, extra, inner, vocab, sequences, parts, states_size;
  float tau;
  bool silu, residual;
};

// Bytes of shared memory.
constexpr int classify_bytes(int classes) { return kWarps * classes * 4; }
constexpr int up_bytes(int rows) { return 16 + rows * 4 + kWarps * kOutputs * kRows * 4; }
constexpr int out_bytes(int rows) { return kWarps * rows * 8; }

constexpr int padded(int inner) { return (inner + 63) / 64 * 64; }

// The number of the first `end` rows that want head `wanted`, counted from 1; by a whole warp.
EW_DEVICE int count_rows(const std::int32_t* lengths, int end, int wanted) {
  int count = 0;
  for (int first = 0; first < end; first += kWarp) {
    const int row = first + lane_index();
    count += count_bits(ballot(row < end && lengths[row] >= wanted));
  }
  return count;
}

// Larger for a larger logit, then for a lower token; a NaN is largest of all. 0 is less than any.
EW_DEVICE std::uint64_t key_of(float logit, int token) {
  if (logit != logit) return ~std::uint64_t{0};
  const std::uint32_t bits = float_to_bits(logit + 0.0f);  // -0 becomes 0
  const std::uint32_t order = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<std::uint64_t>(order) << 32) | ~static_cast<std::uint32_t>(token);
}

EW_DEVICE bool is_finite(std::uint64_t key) {
  const std::uint32_t order = static_cast<std::uint32_t>(key >> 32);
  return order > 0x007fffffu && order < 0xff800000u;  // between those of -inf and inf
}

EW_DEVICE std::uint64_t larger(std::uint64_t a, std::uint64_t b) { return a > b ? a : b; }

// ---- classify

EW_DEVICE bool may_emit(const Task& task, int row) {
  if (task.greedy[row] < 0) return false;
  if (task.sample_rows == nullptr) return true;
  bool found = false;
  for (int s = lane_index(); s < task.sequences; s += kWarp)
    found |= task.query_starts[s + 1] - std::int64_t{1} == task.sample_rows[row];
  return ballot(found) != 0;
}

// scores[kWarps][classes]: each warp's part of the products.
template <Type type>
EW_DEVICE void score_classes(const Task& task, const std::uint16_t* state, float* scores) {
  constexpr int kClasses = 4;  // at a time
  for (int first = 0; first < task.classes; first += kClasses) {
    float sums[kClasses] = {};
    const float* weight = task.classifier_weight + static_cast<std::int64_t>(first) * task.size;
    for (int k = thread_index(); k < task.size; k += kThreads) {
      const float x = to_float<type>(state[k]);
      EW_UNROLL
      for (int c = 0; c < kClasses; ++c)
        if (first + c < task.classes) sums[c] += weight[static_cast<std::int64_t>(c) * task.size + k] * x;
    }
    EW_UNROLL
    for (int c = 0; c < kClasses; ++c) {
      const float sum = warp_sum(sums[c]);
      if (lane_index() == 0 && first + c < task.classes) scores[warp_index() * task.classes + first + c] = sum;
    }
  }
}

// The likeliest class, the first among equals; 0 where it is less likely than tau or a score is not finite.
EW_DEVICE int choose_length(const Task& task, float* scores) {
  int top = 0;
  for (int c = 0; c < task.classes; ++c) {
    float score = task.classifier_bias[c];
    for (int w = 0; w < kWarps; ++w) score += scores[w * task.classes + c];
    if (!(score - score == 0.0f)) return 0;
    scores[c] = score;
    if (score > scores[top]) top = c;
  }
  float total = 0.0f;
  for (int c = 0; c < task.classes; ++c) total += fast_exp2((scores[c] - scores[top]) * kLog2E);
  if (1.0f / total < task.tau) return 0;
  return top < task.extra ? top : task.extra;
}

template <Type type>
EW_KERNEL(kThreads, 1)
classify_kernel(EW_CONSTANT Task task) {
  float* scores = reinterpret_cast<float*>(shared_memory());
  const int row = block_x();
  score_classes<type>(task, task.hidden + static_cast<std::int64_t>(row) * task.size, scores);
  for (int j = thread_index(); j <= task.extra; j += kThreads)
    task.tokens[static_cast<std::int64_t>(row) * (task.extra + 1) + j] = j == 0 ? task.greedy[row] : -1;
  sync_block();
  if (warp_index() != 0) return;
  const bool emits = may_emit(task, row);
  if (lane_index() != 0) return;
  task.counts[row] = 1;
  task.lengths[row] = emits ? choose_length(task, scores) : 0;
}

// ---- emit

EW_KERNEL(kEmitThreads, 1) emit_kernel(EW_CONSTANT Task task) {
  const int row = block_x() * (kEmitThreads / kWarp) + warp_index();
  if (row >= task.rows) return;
  const int length = task.lengths[row];
  for (int head = 0; head < length; ++head) {
    const std::int64_t place = static_cast<std::int64_t>(head) * task.rows + count_rows(task.lengths, row, head + 1);
    std::uint64_t key = 0;
    for (int part = lane_index(); part < task.parts; part += kWarp)
      key = larger(key, task.best[place * task.parts + part]);
    EW_UNROLL
    for (int mask = 1; mask < kWarp; mask *= 2) key = larger(key, shuffle_xor(key, mask));
    if (!is_finite(key)) return;
    if (lane_index() != 0) continue;
    task.tokens[static_cast<std::int64_t>(row) * (task.extra + 1) + 1 + head] = ~static_cast<std::uint32_t>(key);
    task.counts[row] = 2 + head;
  }
}

}  // namespace ew::clp_emit
