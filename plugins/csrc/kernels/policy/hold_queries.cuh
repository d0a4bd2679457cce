// HoldQueries: the query of position p goes to entry p mod R of its row's ring.
//
// A block takes one new token: query [tokens, heads, dim] and ring [slots, heads, entries, dim] of 16 bits. Of a row
// with more than R new tokens the blocks of the first ones end at once, so no entry is written twice. Bytes: each query
// that is kept, read once and written once. Any architecture.
#pragma once

#include "kernels/policy/token_rows.cuh"

namespace ew::hold_queries {

struct Task {
  const std::uint16_t* query;
  std::uint16_t* ring;
  const std::int32_t *starts, *slots;
  const std::int64_t* positions;
  int rows, heads, dim;
  std::int64_t entries;
};

constexpr int kThreads = 256;

EW_KERNEL(kThreads, 4) hold_queries_kernel(EW_CONSTANT Task task) {
  const int token = block_x(), row = row_of_token(task.starts, task.rows, token);
  if (token < task.starts[row + 1] - task.entries) return;
  const std::int64_t entry = task.positions[token] % task.entries;
  const std::uint16_t* from = task.query + static_cast<std::int64_t>(token) * task.heads * task.dim;
  std::uint16_t* slot = task.ring + task.slots[row] * task.heads * task.entries * task.dim;
  for (int i = thread_index(); i < task.heads * task.dim; i += kThreads)
    slot[(i / task.dim * task.entries + entry) * task.dim + i % task.dim] = from[i];
}

}  // namespace ew::hold_queries
