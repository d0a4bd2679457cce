// ew_cuda_mark_tokens: checks a call, lays out its workspace and starts its kernels: two, or the one that writes given
// values.
#include "generated/calls/mark_tokens.h"
#include "kernels/policy/mark_tokens.cuh"
#include "launchers/stored_tokens.h"

namespace ew::cuda {
namespace {

using namespace mark_tokens;

constexpr const char* kOp = "MarkTokens";
constexpr std::int32_t kRecurrence = 1, kGiven = 2;  // the attribute `kind`

void check(const EwMarkTokens& call) {
  check_stored(kOp, call);
  expect_range(kOp, "tokens", call.tokens, 0, kMostInt);
  expect(call.rows >= 1 || call.tokens == 0, kOp, "rows", call.rows, "1 or more, because there are tokens");
  expect_range(kOp, "kind", call.kind, 0, 2);
  const std::int64_t channels = call.kind == kRecurrence ? 2 : 1;
  expect(call.channels == channels, kOp, "channels", call.channels,
         std::to_string(channels) + ", because kind = " + std::to_string(call.kind));
  if (!(call.alpha > 0.0f && call.alpha <= 1.0f))
    refuse(kOp, "alpha", std::to_string(call.alpha), "above 0, at most 1");
}

void check_tensors(const EwMarkTokens& call) {
  expect_tensor(kOp, "tiles", call.tiles);
  expect_pointer(kOp, "query", call.query);
  expect_pointer(kOp, "query_starts", call.query_starts);
  expect_pointer(kOp, "kv_lens", call.kv_lens);
  expect_pointer(kOp, "table", call.table);
  expect_pointer(kOp, "position_ids", call.position_ids);
  expect_pointer(kOp, "marks", call.marks);
  if (call.kind == kGiven) expect_pointer(kOp, "values", call.values);
}

Task task_of(const EwMarkTokens& call) {
  Task task{};
  task.view = key_view(call);
  task.query = static_cast<const std::uint16_t*>(call.query);
  task.starts = call.query_starts;
  task.positions = call.position_ids;
  task.values = call.values;
  task.marks = call.marks;
  task.rows = static_cast<int>(call.rows);
  task.recurrence = call.kind == kRecurrence;
  task.alpha = call.alpha;
  return task;
}

std::int64_t take_workspace(Task& task, const EwMarkTokens& call, void* base) {
  Workspace workspace(base);
  if (call.kind == kGiven) return workspace.used();
  task.softmaxes = workspace.take<Softmax>(call.tokens * call.query_heads);
  return workspace.used();
}

// Queries are not read, so their type is of no matter.
void start_given(const Task& task, const EwMarkTokens& call, void* stream) {
  launch(kOp, values_kernel, Grid{call.tokens}, kWeightThreads, 0, stream, task);
}

template <Type type>
void start(const Task& task, const EwMarkTokens& call, void* stream) {
  const std::size_t shared = query_bytes(task.view);
  launch(kOp, softmaxes_kernel<type>, Grid{call.tokens, call.kv_heads}, kWeightThreads, shared, stream, task);
  launch(kOp, marks_kernel<type>, Grid{call.table_width, call.kv_heads, call.rows}, kWeightThreads, shared, stream,
         task);
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_mark_tokens_workspace(const EwMarkTokens* call) {
  return guarded(std::int64_t{-1}, [&] {
    check(*call);
    ew::mark_tokens::Task task = task_of(*call);
    return take_workspace(task, *call, nullptr);
  });
}

int ew_cuda_mark_tokens(const EwMarkTokens* call, void* workspace, int64_t bytes, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    if (call->tokens == 0) return 0;
    check_tensors(*call);
    ew::mark_tokens::Task task = task_of(*call);
    expect_workspace(kOp, workspace, bytes, take_workspace(task, *call, workspace));
    if (call->kind == kGiven) {
      start_given(task, *call, stream);
      return 0;
    }
    call->type == EW_HALF ? start<ew::kHalf>(task, *call, stream) : start<ew::kBfloat16>(task, *call, stream);
    return 0;
  });
}

}  // extern "C"
