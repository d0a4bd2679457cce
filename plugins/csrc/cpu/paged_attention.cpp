#include "paged_attention.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "attention_plan.h"
#include "isa.h"
#include "scratch.h"

namespace ew {
namespace {

constexpr std::int64_t kWorthwhile = 1 << 19;       // multiply-adds: about the price of waking a thread
constexpr std::int64_t kWriteTokens = 64;           // tokens of one writing task
constexpr std::int64_t kWriteWorthwhile = 1 << 17;  // elements

// What one call needs and the next one reuses.
struct Workspace {
  AttentionPlan plan;
  FloatBuffer parts;
  std::unique_ptr<std::atomic<std::int64_t>[]> open;  // parts still missing, per join
  std::size_t open_size = 0;

  void prepare(const AttentionArgs& args) {
    plan.build(args);
    parts.reserve(static_cast<std::size_t>(plan.part_floats));
    if (plan.joins.size() > open_size) {
      open_size = 0;
      open = std::make_unique<std::atomic<std::int64_t>[]>(plan.joins.size());
      open_size = plan.joins.size();
    }
    for (std::size_t i = 0; i < plan.joins.size(); ++i) open[i].store(plan.joins[i].parts, std::memory_order_relaxed);
  }
};

Pool<Workspace>& workspaces() {
  static Pool<Workspace> pool;
  return pool;
}

Pool<FloatBuffer>& thread_buffers() {
  static Pool<FloatBuffer> pool;
  return pool;
}

// One thread's share of memory for tasks of up to `lanes` lanes, carved from one buffer.
struct ThreadMemory {
  TaskScratch scratch;
  float* result;  // the partial of a task that is alone

  ThreadMemory(FloatBuffer& buffer, const AttentionArgs& args, std::int64_t lanes) {
    const std::int64_t sizes[] = {lanes * args.head_dim,
                                  kMaxLanesPerBlock * kTileTokens,
                                  kTileTokens * args.head_dim,
                                  kTileTokens * args.value_dim,
                                  2 * lanes,
                                  lanes * (value_stride(args.value_dim) + 2)};
    std::int64_t offsets[7] = {0};
    for (int i = 0; i < 6; ++i) offsets[i + 1] = offsets[i] + (sizes[i] + 15) / 16 * 16;
    float* base = buffer.reserve(static_cast<std::size_t>(offsets[6]));
    scratch = {base + offsets[0], base + offsets[1], base + offsets[2], base + offsets[3],
               reinterpret_cast<std::int64_t*>(base + offsets[4])};
    result = base + offsets[5];
  }
};

// Writing comes first and as a whole: rows may share tiles that one of them fills in this call.
void write_new_tokens(const AttentionArgs& args, const Kernels& kernels, const Parallel& parallel) {
  const std::int64_t pieces = (args.tokens + kWriteTokens - 1) / kWriteTokens;
  auto write = [&](std::size_t i) {
    const std::int64_t head = static_cast<std::int64_t>(i) % args.kv_heads;
    const std::int64_t first = static_cast<std::int64_t>(i) / args.kv_heads * kWriteTokens;
    const std::int64_t last = std::min(first + kWriteTokens, args.tokens);
    // the row that owns token `first`: the last one that starts at or before it
    std::int64_t row = std::upper_bound(args.starts, args.starts + args.rows + 1, first) - args.starts - 1;
    for (std::int64_t token = first; token < last; ++row) {
      const std::int64_t end = std::min<std::int64_t>(last, args.starts[row + 1]);
      kernels.write_tokens(args, row, head, token - args.starts[row], end - token);
      token = end;
    }
  };
  const bool worthwhile = args.tokens * args.kv_heads * (args.head_dim + args.value_dim) > kWriteWorthwhile;
  for_each(parallel, worthwhile, static_cast<std::size_t>(pieces * args.kv_heads), write);
}

void run_task(const AttentionArgs& args, const Kernels& kernels, Workspace& work, std::size_t i) {
  const AttentionTask& task = work.plan.tasks[i];
  // hosts hand out neighbours to one thread; a wrong guess costs a tile's worth of reads
  const AttentionTask* following = i + 1 < work.plan.tasks.size() ? &work.plan.tasks[i + 1] : nullptr;
  const Pool<FloatBuffer>::Loan buffer(thread_buffers());
  const ThreadMemory memory(*buffer, args, work.plan.max_lanes);
  Partial out = {memory.result, task.query_count * args.group(), value_stride(args.value_dim)};
  if (task.join < 0) {
    kernels.attend(args, task, following, memory.scratch, out);
    kernels.merge(args, task, out, 1);
    return;
  }
  out.data = work.parts.reserve(0) + task.part;
  kernels.attend(args, task, following, memory.scratch, out);
  // whoever finishes last joins; acquire and release make every part visible to it
  if (work.open[static_cast<std::size_t>(task.join)].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const Join& join = work.plan.joins[static_cast<std::size_t>(task.join)];
  out.data = work.parts.reserve(0) + join.first;
  kernels.merge(args, join.whole, out, join.parts);
}

}  // namespace

void paged_attention(const AttentionArgs& args, const Parallel& parallel) {
  if (args.tokens == 0) return;
  const Kernels& kernels = ew::kernels();
  const Pool<Workspace>::Loan work(workspaces());
  work->prepare(args);
  write_new_tokens(args, kernels, parallel);
  std::atomic<bool> failed{false};
  auto run = [&](std::size_t i) {
    try {
      run_task(args, kernels, *work, i);
    } catch (const std::bad_alloc&) {
      failed.store(true, std::memory_order_relaxed);
    }
  };
  for_each(parallel, work->plan.work > kWorthwhile, work->plan.tasks.size(), run);
  if (failed.load()) throw std::bad_alloc();
}

}  // namespace ew
