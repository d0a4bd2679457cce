// TokenScores, the importance: what the queries of a window look at.
//
// Two kernels of kTileTokens threads. `window`: a block takes one query of the window and a KV head of a row, goes over
// the tiles, and writes the softmax of each query head, or of the group's largest logits. `importance`: a block takes
// one tile, a thread one of its tokens, and goes over the window's queries in order. Any architecture; shared memory:
// the queries of a group as floats.
#pragma once

#include "kernels/policy/query_weights.cuh"

namespace ew::token_scores {

enum Group : int { kMaxLogit = 0, kMean = 1, kMax = 2 };

struct Task {
  KeyView view;
  const std::uint16_t* ring;
  const std::int32_t* slots;
  const std::int64_t* last_positions;
  float *importance, *redundancy;
  Softmax* softmaxes;  // [rows, kv heads, window, lanes]
  // the redundancy's memory, [rows, kv heads, table_width * kTileTokens] but for sums [.., table_width, head_dim]
  float *inverse, *own, *dropped, *sums;
  std::int32_t* with;
  std::int64_t entries;
  int window;
  bool causal;
  Group group;
  float threshold;

  EW_DEVICE std::int64_t head_at(int row, int head) const {
    return static_cast<std::int64_t>(row) * view.kv_heads + head;
  }
  // Where a row and KV head begins in the outputs and in the redundancy's memory.
  EW_DEVICE std::int64_t begin(int row, int head) const { return head_at(row, head) * view.table_width * kTileTokens; }
  EW_DEVICE int lanes() const { return group == kMaxLogit ? 1 : view.group; }
  EW_DEVICE Softmax* softmaxes_of(int row, int head, int t) const {
    return softmaxes + (head_at(row, head) * window + t) * lanes();
  }
  EW_DEVICE bool has_scores(int row, int head) const { return view.held(row, head) > window; }
  // Tokens that have a score, and those that query t of the window sees.
  EW_DEVICE int scored(int row, int head) const { return view.held(row, head) - (causal ? 0 : window); }
  EW_DEVICE int seen(int row, int head, int t) const { return view.held(row, head) - window + (causal ? 1 + t : 0); }
  EW_DEVICE const std::uint16_t* query_of(int row, int head, int t) const {
    const std::int64_t entry = (last_positions[row] - window + 1 + t) % entries;
    const std::int64_t first = (static_cast<std::int64_t>(slots[row]) * view.kv_heads + head) * view.group;
    return ring + (first * entries + entry) * view.head_dim;
  }
};

template <Type type>
EW_KERNEL(kWeightThreads, 4)
window_kernel(EW_CONSTANT Task task) {
  const int t = block_x(), head = block_y(), row = block_z();
  if (!task.has_scores(row, head)) return;
  float* queries = reinterpret_cast<float*>(shared_memory());
  float* shared = queries + task.view.group * task.view.head_dim;
  stage_queries<type>(task.view, task.query_of(row, head, t), task.entries * task.view.head_dim, queries);
  const int seen = task.seen(row, head, t);
  Softmax* to = task.softmaxes_of(row, head, t);
  if (task.group == kMaxLogit)
    find_softmax_of_largest(task.view, queries, row, head, seen, shared, to);
  else
    find_softmaxes(task.view, queries, row, head, seen, shared, to);
}

// What query t gives the token of a slot.
EW_DEVICE float weight_of(const Task& task, const float* queries, const Softmax* softmaxes, const TileKeys& tile,
                          int slot) {
  if (task.group == kMaxLogit) return softmaxes[0].weight(largest_logit(task.view, queries, tile, slot));
  const GroupWeight weight = group_weight(task.view, queries, softmaxes, tile, slot);
  return task.group == kMax ? weight.most : weight.sum / static_cast<float>(task.view.group);
}

template <Type type>
EW_KERNEL(kWeightThreads, 4)
importance_kernel(EW_CONSTANT Task task) {
  const int tile = block_x(), head = block_y(), row = block_z();
  const int index = tile * kTileTokens + thread_index();
  float* to = task.importance + task.begin(row, head) + index;
  if (!task.has_scores(row, head) || tile * kTileTokens >= task.scored(row, head)) {
    *to = 0.0f;
    return;
  }
  const TileKeys keys = task.view.tile(row, head, tile);
  float* queries = reinterpret_cast<float*>(shared_memory());
  float sum = 0.0f;
  for (int t = 0; t < task.window; ++t) {
    stage_queries<type>(task.view, task.query_of(row, head, t), task.entries * task.view.head_dim, queries);
    if (index >= task.seen(row, head, t)) continue;
    sum += weight_of(task, queries, task.softmaxes_of(row, head, t), keys, thread_index());
  }
  *to = task.causal ? sum : sum / static_cast<float>(task.window);
}

}  // namespace ew::token_scores
