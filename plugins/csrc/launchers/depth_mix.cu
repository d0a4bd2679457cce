// ew_cuda_depth_mix: checks a call and starts the kernel for its head size.
#include <algorithm>
#include <string>

#include "generated/calls/depth_mix.h"
#include "kernels/rows/depth_mix.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

using namespace depth_mix;

constexpr const char* kOp = "DepthMix";
static_assert(kLayers == EW_DEPTH_MIX_MOST_SOURCES + 1);

void expect_dim(const char* name, std::int64_t dim) {
  expect(dim >= EW_DEPTH_MIX_DIM_STEP && dim <= EW_DEPTH_MIX_MOST_DIM && dim % EW_DEPTH_MIX_DIM_STEP == 0, kOp, name,
         dim,
         "a multiple of " + std::to_string(EW_DEPTH_MIX_DIM_STEP) + " up to " + std::to_string(EW_DEPTH_MIX_MOST_DIM));
}

void check(const EwDepthMix& call) {
  expect_type(kOp, call.type);
  expect(call.tokens >= 0, kOp, "tokens", call.tokens, "0 or more");
  expect(call.kv_heads > 0, kOp, "kv_heads", call.kv_heads, "1 or more");
  expect(call.query_heads > 0 && call.query_heads % call.kv_heads == 0, kOp, "query_heads", call.query_heads,
         "a multiple of the key's " + std::to_string(call.kv_heads));
  expect_dim("head_dim", call.head_dim);
  expect_dim("value_dim", call.value_dim);
  expect(call.source_count >= 0 && call.source_count <= EW_DEPTH_MIX_MOST_SOURCES, kOp, "source_count",
         call.source_count, "0 to " + std::to_string(EW_DEPTH_MIX_MOST_SOURCES));
  if (!(call.scale - call.scale == 0.0f)) refuse(kOp, "scale", std::to_string(call.scale), "a finite number");
}

void check_tensors(const EwDepthMix& call) {
  expect_tensor(kOp, "query", call.query);
  expect_tensor(kOp, "key", call.key);
  expect_tensor(kOp, "value", call.value);
  expect_tensor(kOp, "mixed", call.mixed);
  if (call.source_count > 0 && call.sources == nullptr)
    refuse(kOp, "sources", "a null pointer", "an array of pointers");
  for (std::int64_t i = 0; i < 2 * call.source_count; ++i)
    expect_tensor(kOp, "sources[" + std::to_string(i) + "]", call.sources[i]);
}

Task task_of(const EwDepthMix& call) {
  Task task{};
  const auto halves = [](const void* pointer) { return static_cast<const std::uint16_t*>(pointer); };
  task.query = halves(call.query);
  task.layers[0] = halves(call.key);
  task.layers[1] = halves(call.value);
  for (std::int64_t i = 0; i < 2 * call.source_count; ++i) task.layers[2 + i] = halves(call.sources[i]);
  task.mixed = static_cast<std::uint16_t*>(call.mixed);
  task.rows = call.tokens * call.kv_heads;
  task.group = static_cast<int>(call.query_heads / call.kv_heads);
  task.head_dim = static_cast<int>(call.head_dim);
  task.value_dim = static_cast<int>(call.value_dim);
  task.layer_count = static_cast<int>(call.source_count) + 1;
  task.factor = call.scale * kLog2E / static_cast<float>(task.group);
  return task;
}

template <Type type, int kLanes, int kPieces>
void start(const Task& task, void* stream) {
  constexpr std::int64_t kRows = kThreads / kLanes;
  launch(kOp, depth_mix_kernel<type, kLanes, kPieces>, Grid{(task.rows + kRows - 1) / kRows}, kThreads, 0, stream,
         task);
}

template <Type type>
void start(const Task& task, void* stream) {
  const int pieces = std::max(task.head_dim, task.value_dim) / 8;
  if (pieces <= 8) return start<type, 8, 1>(task, stream);
  if (pieces <= 16) return start<type, 16, 1>(task, stream);
  if (pieces <= 32) return start<type, 32, 1>(task, stream);
  start<type, 32, 2>(task, stream);
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_depth_mix_workspace(const EwDepthMix* call) {
  return guarded(std::int64_t{-1}, [&] {
    check(*call);
    return std::int64_t{0};
  });
}

int ew_cuda_depth_mix(const EwDepthMix* call, void*, int64_t, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    if (call->tokens == 0) return 0;
    check_tensors(*call);
    const ew::depth_mix::Task task = task_of(*call);
    call->type == EW_HALF ? start<ew::kHalf>(task, stream) : start<ew::kBfloat16>(task, stream);
    return 0;
  });
}

}  // extern "C"
