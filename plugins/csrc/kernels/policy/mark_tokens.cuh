// MarkTokens: adds what the new queries look at to the marks of stored tokens.
//
// Two kernels of kTileTokens threads. `softmaxes`: a block takes one new token and KV head and goes over the row's
// tiles; it writes a maximum and a factor for each query head. `marks`: a block takes one tile of a row and KV head, a
// thread one of its tokens, and goes over the row's new queries in order. So nothing is added up in an order that
// varies. `values`: a block takes one new token, a thread one KV head after another, where marks are given.
// Keys are read for each query twice, from the second cache where rows are short. Any architecture; shared
// memory: the queries of a group as floats.
#pragma once

#include "kernels/policy/query_weights.cuh"
#include "kernels/policy/token_rows.cuh"

namespace ew::mark_tokens {

struct Task {
  KeyView view;
  const std::uint16_t* query;
  const std::int32_t* starts;
  const std::int64_t* positions;
  const float* values;
  float* marks;
  Softmax* softmaxes;  // [tokens, query heads]
  int rows;
  bool recurrence;
  float alpha;

  EW_DEVICE const std::uint16_t* query_of(int token, int head) const {
    return query + (static_cast<std::int64_t>(token) * view.kv_heads + head) * view.group * view.head_dim;
  }
  EW_DEVICE Softmax* softmaxes_of(int token, int head) const {
    return softmaxes + (static_cast<std::int64_t>(token) * view.kv_heads + head) * view.group;
  }
};

template <Type type>
EW_KERNEL(kWeightThreads, 4)
softmaxes_kernel(EW_CONSTANT Task task) {
  const int token = block_x(), head = block_y(), row = row_of_token(task.starts, task.rows, token);
  const int seen = task.view.held(row, head) + token - task.starts[row] + 1;
  float* queries = reinterpret_cast<float*>(shared_memory());
  stage_queries<type>(task.view, task.query_of(token, head), task.view.head_dim, queries);
  float* shared = queries + task.view.group * task.view.head_dim;
  find_softmaxes(task.view, queries, row, head, seen, shared, task.softmaxes_of(token, head));
}

// A token's numbers; kind 0 has the first alone.
struct Mark {
  float first, interval;
};

EW_DEVICE Mark begin_mark(const Task& task, const float* at, int token, bool is_new) {
  if (is_new) return {task.recurrence ? static_cast<float>(task.positions[token]) : 0.0f, 0.0f};
  return {at[0], task.recurrence ? at[kTileTokens] : 0.0f};
}

EW_DEVICE void add_query(const Task& task, const GroupWeight& weight, int token, Mark& mark) {
  if (!task.recurrence) {
    mark.first += weight.sum / static_cast<float>(task.view.group);
  } else if (weight.most >= task.alpha) {
    const float now = static_cast<float>(task.positions[token]), passed = now - mark.first;
    mark.interval = passed > mark.interval ? passed : mark.interval;
    mark.first = now;
  }
}

template <Type type>
EW_KERNEL(kWeightThreads, 4)
marks_kernel(EW_CONSTANT Task task) {
  const int tile = block_x(), head = block_y(), row = block_z();
  const int start = task.starts[row], count = task.starts[row + 1] - start, held = task.view.held(row, head);
  const int index = tile * kTileTokens + thread_index(), total = held + count;
  if (count == 0 || tile * kTileTokens >= total) return;
  const TileKeys keys = task.view.tile(row, head, tile);
  const std::int64_t id = task.view.id(row, head, tile);
  float* at = task.marks + id * (task.recurrence ? 2 : 1) * kTileTokens + thread_index();
  Mark mark = begin_mark(task, at, start + index - held, index >= held && index < total);
  float* queries = reinterpret_cast<float*>(shared_memory());
  const int first = tile * kTileTokens - held;  // the first query that sees the tile
  for (int i = first > 0 ? first : 0; i < count; ++i) {
    stage_queries<type>(task.view, task.query_of(start + i, head), task.view.head_dim, queries);
    if (index > held + i) continue;
    add_query(task, group_weight(task.view, queries, task.softmaxes_of(start + i, head), keys, thread_index()),
              start + i, mark);
  }
  if (index >= total) return;
  at[0] = mark.first;
  if (task.recurrence) at[kTileTokens] = mark.interval;
}

EW_KERNEL(kWeightThreads, 4)
values_kernel(EW_CONSTANT Task task) {
  const int token = block_x(), row = row_of_token(task.starts, task.rows, token), ahead = token - task.starts[row];
  for (int head = thread_index(); head < task.view.kv_heads; head += kWeightThreads) {
    const int index = task.view.held(row, head) + ahead;
    const std::int64_t id = task.view.id(row, head, index / kTileTokens);
    task.marks[id * kTileTokens + index % kTileTokens] =
        task.values[static_cast<std::int64_t>(token) * task.view.kv_heads + head];
  }
}

}  // namespace ew::mark_tokens
