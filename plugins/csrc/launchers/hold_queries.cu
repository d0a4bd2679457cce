// ew_cuda_hold_queries: checks a call and starts its kernel.
#include <limits>

#include "generated/calls/hold_queries.h"
#include "kernels/policy/hold_queries.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

using namespace hold_queries;

constexpr const char* kOp = "HoldQueries";

void expect_range(const char* name, std::int64_t got, std::int64_t least) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  expect(got >= least && got <= kMost, kOp, name, got, std::to_string(least) + " to " + std::to_string(kMost));
}

void check(const EwHoldQueries& call) {
  expect_type(kOp, call.type);
  expect_range("tokens", call.tokens, 0);
  expect_range("rows", call.rows, call.tokens > 0 ? 1 : 0);
  expect_range("heads", call.heads, 0);
  expect_range("dim", call.dim, 0);
  if (call.dim > 0) expect_range("heads times dim", call.heads * call.dim, 0);
  expect_range("slot_count", call.slot_count, 0);
  expect_range("entries", call.entries, 1);
}

Task task_of(const EwHoldQueries& call) {
  Task task{};
  task.query = static_cast<const std::uint16_t*>(call.query);
  task.ring = static_cast<std::uint16_t*>(call.ring);
  task.starts = call.query_starts;
  task.slots = call.slots;
  task.positions = call.position_ids;
  task.rows = static_cast<int>(call.rows);
  task.heads = static_cast<int>(call.heads);
  task.dim = static_cast<int>(call.dim);
  task.entries = call.entries;
  return task;
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_hold_queries_workspace(const EwHoldQueries* call) {
  return guarded<int64_t>(-1, [call] {
    check(*call);
    return 0;
  });
}

int ew_cuda_hold_queries(const EwHoldQueries* call, void*, int64_t, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    if (call->tokens == 0 || call->heads == 0 || call->dim == 0) return 0;
    expect_pointer(kOp, "query", call->query);
    expect_pointer(kOp, "ring", call->ring);
    expect_pointer(kOp, "query_starts", call->query_starts);
    expect_pointer(kOp, "slots", call->slots);
    expect_pointer(kOp, "position_ids", call->position_ids);
    launch(kOp, ew::hold_queries::hold_queries_kernel, Grid{call->tokens}, ew::hold_queries::kThreads, 0, stream,
           task_of(*call));
    return 0;
  });
}

}  // extern "C"
