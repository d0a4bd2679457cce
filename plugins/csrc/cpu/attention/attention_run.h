// Runs the tasks of an attention call on the host's threads, for every attention op.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "cpu/attention/attention_plan.h"
#include "cpu/threads/parallel.h"
#include "cpu/threads/scratch.h"

namespace ew {

// Memory that one call needs and the next one reuses.
struct AttentionWorkspace {
  AttentionPlan plan;
  FloatBuffer parts;
  std::unique_ptr<std::atomic<std::int64_t>[]> open;  // parts still missing, per join
  std::size_t open_size = 0;

  void prepare(const AttentionArgs& args);
};

// One thread's share of memory for tasks of up to `lanes` lanes, carved from one buffer.
struct ThreadMemory {
  TaskScratch scratch;
  float* result;  // the partial of a task that is alone

  ThreadMemory(FloatBuffer& buffer, const AttentionArgs& args, std::int64_t lanes);
};

Pool<AttentionWorkspace>& attention_workspaces();
Pool<FloatBuffer>& thread_buffers();

// Run `body(i)` for each i; std::bad_alloc, which no host's thread may see, is thrown when all are done.
template <class Body>
void for_each_throwing(const Parallel& parallel, bool worthwhile, std::size_t count, Body body) {
  std::atomic<bool> failed{false};
  auto run = [&](std::size_t i) {
    try {
      body(i);
    } catch (const std::bad_alloc&) {
      failed.store(true, std::memory_order_relaxed);
    }
  };
  for_each(parallel, worthwhile, count, run);
  if (failed.load()) throw std::bad_alloc();
}

// Call write(row, head, begin, count) for pieces of all new tokens.
template <class Write>
void for_new_tokens(const AttentionArgs& args, const Parallel& parallel, Write write) {
  constexpr std::int64_t kPieceTokens = 64;
  constexpr std::int64_t kWorthwhile = 1 << 17;  // elements
  const std::int64_t pieces = (args.tokens + kPieceTokens - 1) / kPieceTokens;
  auto run = [&](std::size_t i) {
    const std::int64_t head = static_cast<std::int64_t>(i) % args.kv_heads;
    const std::int64_t first = static_cast<std::int64_t>(i) / args.kv_heads * kPieceTokens;
    const std::int64_t last = std::min(first + kPieceTokens, args.tokens);
    // the row that owns token `first`: the last one that starts at or before it
    std::int64_t row = std::upper_bound(args.starts, args.starts + args.rows + 1, first) - args.starts - 1;
    for (std::int64_t token = first; token < last; ++row) {
      const std::int64_t end = std::min<std::int64_t>(last, args.starts[row + 1]);
      write(row, head, token - args.starts[row], end - token);
      token = end;
    }
  };
  const bool worthwhile = args.tokens * args.kv_heads * (args.head_dim + args.value_dim) > kWorthwhile;
  for_each(parallel, worthwhile, static_cast<std::size_t>(pieces * args.kv_heads), run);
}

// Attend with `attend` and `merge`, which take what the ISA's kernels of that name take. Throws std::bad_alloc.
template <class Args, class Attend, class Merge>
void run_attention(const Args& args, Attend attend, Merge merge, const Parallel& parallel) {
  constexpr std::int64_t kWorthwhile = 1 << 19;  // multiply-adds: about the price of waking a thread
  const Pool<AttentionWorkspace>::Loan work(attention_workspaces());
  work->prepare(args);
  const AttentionPlan& plan = work->plan;
  for_each_throwing(parallel, plan.work > kWorthwhile, plan.tasks.size(), [&](std::size_t i) {
    const AttentionTask& task = plan.tasks[i];
    // hosts hand out neighbours to one thread; a wrong guess costs a tile's worth of reads
    const AttentionTask* following = i + 1 < plan.tasks.size() ? &plan.tasks[i + 1] : nullptr;
    const Pool<FloatBuffer>::Loan buffer(thread_buffers());
    const ThreadMemory memory(*buffer, args, plan.max_lanes);
    Partial out = {memory.result, task.query_count * args.group(), value_stride(args.value_dim)};
    if (task.join < 0) {
      attend(args, task, following, memory.scratch, out);
      merge(args, task, out, 1);
      return;
    }
    out.data = work->parts.reserve(0) + task.part;
    attend(args, task, following, memory.scratch, out);
    // the task that finishes last joins; acquire and release make every part visible to it
    if (work->open[static_cast<std::size_t>(task.join)].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const Join& join = plan.joins[static_cast<std::size_t>(task.join)];
    out.data = work->parts.reserve(0) + join.first;
    merge(args, join.whole, out, join.parts);
  });
}

}  // namespace ew
