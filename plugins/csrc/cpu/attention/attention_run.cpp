#include "cpu/attention/attention_run.h"

namespace ew {

void AttentionWorkspace::prepare(const AttentionArgs& args) {
  plan.build(args);
  parts.reserve(static_cast<std::size_t>(plan.part_floats));
  if (plan.joins.size() > open_size) {
    open_size = 0;
    open = std::make_unique<std::atomic<std::int64_t>[]>(plan.joins.size());
    open_size = plan.joins.size();
  }
  for (std::size_t i = 0; i < plan.joins.size(); ++i) open[i].store(plan.joins[i].parts, std::memory_order_relaxed);
}

ThreadMemory::ThreadMemory(FloatBuffer& buffer, const AttentionArgs& args, std::int64_t lanes) {
  const std::int64_t sizes[] = {lanes * args.head_dim,
                                kMaxLanesPerBlock * kTileTokens,
                                lanes * args.head_dim,
                                kMaxLanesPerBlock * kFoldedStride,
                                kMaxLanesPerBlock * kTileTokens,
                                kTileTokens * args.head_dim,
                                kTileTokens * args.value_dim,
                                2 * lanes,
                                lanes * (value_stride(args.value_dim) + 2)};
  constexpr int kCount = sizeof sizes / sizeof sizes[0];
  std::int64_t offsets[kCount + 1] = {0};
  for (int i = 0; i < kCount; ++i) offsets[i + 1] = offsets[i] + (sizes[i] + 15) / 16 * 16;
  float* base = buffer.reserve(static_cast<std::size_t>(offsets[kCount]));
  scratch = {
      base + offsets[0], base + offsets[1], base + offsets[2], base + offsets[3],
      base + offsets[4], base + offsets[5], base + offsets[6], reinterpret_cast<std::int64_t*>(base + offsets[7])};
  result = base + offsets[8];
}

Pool<AttentionWorkspace>& attention_workspaces() {
  static Pool<AttentionWorkspace> pool;
  return pool;
}

Pool<FloatBuffer>& thread_buffers() {
  static Pool<FloatBuffer> pool;
  return pool;
}

}  // namespace ew
