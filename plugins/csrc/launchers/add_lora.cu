// ew_cuda_add_lora: checks a call and starts its two kernels.
#include <limits>
#include <string>

#include "generated/calls/add_lora.h"
#include "kernels/lora/add_lora.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

using namespace add_lora;

constexpr const char* kOp = "AddLora";
static_assert(kSegments == EW_ADD_LORA_MOST_SEGMENTS);
constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

void expect_range(const char* name, std::int64_t got, std::int64_t least, std::int64_t most) {
  expect(got >= least && got <= most, kOp, name, got, std::to_string(least) + " to " + std::to_string(most));
}

void check(const EwAddLora& call) {
  expect_type(kOp, call.type);
  expect_range("tokens", call.tokens, 0, kMost);
  expect_range("outputs", call.outputs, 1, 1 << 24);
  expect_range("size", call.size, 1, 1 << 24);
  expect_range("capacity", call.capacity, 1, 1 << 20);
  expect_range("layers", call.layers, 1, 1 << 20);
  expect_range("layer", call.layer, 0, call.layers - 1);
  expect_range("rank", call.rank, 1, 1 << 16);
  expect_range("segments", call.segments, 1, EW_ADD_LORA_MOST_SEGMENTS);
  expect_pointer(kOp, "widths", call.widths);
  std::int64_t total = 0;
  for (std::int64_t i = 0; i < call.segments; ++i) {
    expect_range("widths", call.widths[i], 1, call.outputs);
    total += call.widths[i];
  }
  expect(total == call.outputs, kOp, "widths", total, "a sum of outputs = " + std::to_string(call.outputs));
}

void check_tensors(const EwAddLora& call) {
  expect_tensor(kOp, "base", call.base);
  expect_tensor(kOp, "x", call.x);
  expect_pointer(kOp, "factors", call.factors);
  for (std::int64_t i = 0; i < 2 * call.segments; ++i)
    expect_tensor(kOp, "factors[" + std::to_string(i) + "]", call.factors[i]);
  expect_pointer(kOp, "index", call.index);
  expect_pointer(kOp, "scale", call.scale);
  expect_tensor(kOp, "sum", call.sum);
}

void take_segments(Task& task, const EwAddLora& call) {
  std::int64_t begin = 0;
  for (std::int64_t i = 0; i < call.segments; ++i) {
    const std::int64_t width = call.widths[i];
    Segment& segment = task.segments[i];
    if (call.factors != nullptr) {
      segment.a = static_cast<const std::uint16_t*>(call.factors[2 * i]) + call.layer * call.rank * call.size;
      segment.b = static_cast<const std::uint16_t*>(call.factors[2 * i + 1]) + call.layer * call.rank * width;
    }
    segment.begin = begin;
    segment.outputs = width;
    segment.b_stride = call.layers * call.rank * width;
    begin += width;
  }
}

Task task_of(const EwAddLora& call) {
  const auto halves = [](const void* pointer) { return static_cast<const std::uint16_t*>(pointer); };
  Task task{};
  task.base = halves(call.base);
  task.x = halves(call.x);
  task.index = call.index;
  task.scale = call.scale;
  task.sum = static_cast<std::uint16_t*>(call.sum);
  task.a_stride = call.layers * call.rank * call.size;
  task.size = call.size;
  task.outputs = call.outputs;
  task.capacity = static_cast<int>(call.capacity);
  task.rank = static_cast<int>(call.rank);
  task.numbers = static_cast<int>(call.segments * call.rank);
  task.segment_count = static_cast<int>(call.segments);
  take_segments(task, call);
  return task;
}

bool is_wide(const Task& task) {
  for (int i = 0; i < task.segment_count; ++i)
    if (task.segments[i].outputs % 8 != 0) return false;
  return true;
}

std::int64_t take_workspace(Task& task, std::int64_t tokens, void* base) {
  Workspace workspace(base);
  task.inner = workspace.take<float>(tokens * task.numbers);
  return workspace.used();
}

template <Type type>
void start(const Task& task, std::int64_t tokens, void* stream) {
  const bool wide_rows = task.size % 8 == 0, wide = is_wide(task);
  const std::int64_t outputs = kThreads * (wide ? 8 : 1);
  launch(kOp, wide_rows ? inner_kernel<type, true> : inner_kernel<type, false>,
         Grid{tokens, (task.numbers + kRows - 1) / kRows}, kThreads, 0, stream, task);
  launch(kOp, wide ? outer_kernel<type, true> : outer_kernel<type, false>,
         Grid{tokens, (task.outputs + outputs - 1) / outputs}, kThreads, 0, stream, task);
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_add_lora_workspace(const EwAddLora* call) {
  return guarded(std::int64_t{-1}, [&] {
    check(*call);
    ew::add_lora::Task task = task_of(*call);
    return take_workspace(task, call->tokens, nullptr);
  });
}

int ew_cuda_add_lora(const EwAddLora* call, void* workspace, int64_t bytes, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    if (call->tokens == 0) return 0;
    check_tensors(*call);
    ew::add_lora::Task task = task_of(*call);
    expect_workspace(kOp, workspace, bytes, take_workspace(task, call->tokens, workspace));
    call->type == EW_HALF ? start<ew::kHalf>(task, call->tokens, stream)
                          : start<ew::kBfloat16>(task, call->tokens, stream);
    return 0;
  });
}

}  // extern "C"
