// ew_cuda_clp_emit: checks a call and starts the four kernels of an emission.
#include <algorithm>
#include <limits>
#include <string>

#include "generated/calls/clp_emit.h"
#include "kernels/emission/clp_emit.cuh"
#include "kernels/emission/clp_heads.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

using namespace clp_emit;

constexpr const char* kOp = "ClpEmit";
static_assert(kMostRows == EW_CLP_EMIT_MOST_ROWS);

void expect_range(const char* name, std::int64_t got, std::int64_t least, std::int64_t most) {
  expect(got >= least && got <= most, kOp, name, got, std::to_string(least) + " to " + std::to_string(most));
}

void check(const EwClpEmit& call) {
  expect_type(kOp, call.type);
  expect_range("rows", call.rows, 0, kMostRows);
  expect_range("size", call.size, 1, 1 << 20);
  expect_range("classes", call.classes, 1, EW_CLP_EMIT_MOST_CLASSES);
  expect_range("extra", call.extra, 1, EW_CLP_EMIT_MOST_EXTRA);
  expect_range("inner", call.inner, 1, 1 << 20);
  expect_range("vocab", call.vocab, 1, 1 << 26);
  expect_range("sequences", call.sequences, 0, std::numeric_limits<std::int32_t>::max() - 1);
  expect_range("activation", call.activation, 0, 1);
  expect_range("residual", call.residual, 0, 1);
  if (call.residual == 1)
    expect(call.inner == call.size, kOp, "inner", call.inner,
           "size = " + std::to_string(call.size) + ", because residual = 1");
  if (call.tau != call.tau) refuse(kOp, "tau", "NaN", "a number");
}

void expect_both(const char* name, const void* one, const char* other_name, const void* other) {
  if ((one == nullptr) != (other == nullptr))
    refuse(kOp, name, "only one of the two", std::string("both or neither of it and ") + other_name);
}

void check_tensors(const EwClpEmit& call) {
  expect_tensor(kOp, "hidden", call.hidden);
  expect_pointer(kOp, "greedy", call.greedy);
  expect_pointer(kOp, "classifier_weight", call.classifier_weight);
  expect_pointer(kOp, "classifier_bias", call.classifier_bias);
  expect_tensor(kOp, "up_weight", call.up_weight);
  expect_pointer(kOp, "up_bias", call.up_bias);
  expect_pointer(kOp, "out_bias", call.out_bias);
  if ((call.out_weight == nullptr) == (call.out_codes == nullptr))
    refuse(kOp, "out_weight", call.out_weight == nullptr ? "neither" : "both", "either it or out_codes");
  expect_both("out_scales", call.out_scales, "out_codes", call.out_codes);
  expect_aligned(kOp, "out_weight", call.out_weight);
  expect_aligned(kOp, "out_codes", call.out_codes);
  expect_both("query_starts", call.query_starts, "sample_rows", call.sample_rows);
  expect_pointer(kOp, "tokens", call.tokens);
  expect_pointer(kOp, "counts", call.counts);
}

void take_tensors(Task& task, const EwClpEmit& call) {
  const auto halves = [](const void* pointer) { return static_cast<const std::uint16_t*>(pointer); };
  task.hidden = halves(call.hidden);
  task.greedy = call.greedy;
  task.classifier_weight = call.classifier_weight;
  task.classifier_bias = call.classifier_bias;
  task.up_weight = halves(call.up_weight);
  task.up_bias = halves(call.up_bias);
  task.out_bias = halves(call.out_bias);
  task.out_weight = halves(call.out_weight);
  task.out_codes = call.out_codes;
  task.out_scales = call.out_scales;
  task.sample_rows = call.sample_rows;
  task.query_starts = call.query_starts;
  task.tokens = call.tokens;
  task.counts = call.counts;
}

Task task_of(const EwClpEmit& call) {
  Task task{};
  take_tensors(task, call);
  task.rows = static_cast<int>(call.rows);
  task.size = static_cast<int>(call.size);
  task.classes = static_cast<int>(call.classes);
  task.extra = static_cast<int>(call.extra);
  task.inner = static_cast<int>(call.inner);
  task.vocab = static_cast<int>(call.vocab);
  task.sequences = static_cast<int>(call.sequences);
  // two blocks of `out` fit a multiprocessor; each warp has a tile at least
  task.parts = std::min((task.vocab + kOutputs * kWarps - 1) / (kOutputs * kWarps), 2 * multiprocessor_count());
  task.states_size = 2 * kRows * padded(task.inner);
  task.tau = call.tau;
  task.silu = call.activation == 1;
  task.residual = call.residual == 1;
  return task;
}

// Puts the workspace's parts into the task; returns its size.
std::int64_t take_workspace(Task& task, void* base) {
  Workspace workspace(base);
  const std::int64_t row_blocks = (task.rows + kRows - 1) / kRows;
  task.lengths = workspace.take<std::int32_t>(task.rows);
  task.states = workspace.take<std::uint16_t>(task.extra * row_blocks * task.states_size);
  task.best = workspace.take<std::uint64_t>(static_cast<std::int64_t>(task.extra) * task.rows * task.parts);
  return workspace.used();
}

template <Type type, bool kCodes>
void start_heads(const Task& task, void* stream) {
  const auto up = task.size % 8 == 0 ? up_kernel<type, true, kCodes> : up_kernel<type, false, kCodes>;
  const bool wide = task.inner % (kCodes ? 16 : 8) == 0;
  const auto out = wide ? out_kernel<type, kCodes, true> : out_kernel<type, kCodes, false>;
  launch(kOp, up, Grid{padded(task.inner) / kOutputs, task.extra}, kThreads,
         static_cast<std::size_t>(up_bytes(task.rows)), stream, task);
  launch(kOp, out, Grid{task.parts, task.extra}, kThreads, static_cast<std::size_t>(out_bytes(task.rows)), stream,
         task);
}

template <Type type>
void start(const Task& task, void* stream) {
  constexpr int kEmitRows = kEmitThreads / kWarp;
  launch(kOp, classify_kernel<type>, Grid{task.rows}, kThreads, static_cast<std::size_t>(classify_bytes(task.classes)),
         stream, task);
  task.out_codes != nullptr ? start_heads<type, true>(task, stream) : start_heads<type, false>(task, stream);
  launch(kOp, emit_kernel, Grid{(task.rows + kEmitRows - 1) / kEmitRows}, kEmitThreads, 0, stream, task);
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_clp_emit_workspace(const EwClpEmit* call) {
  return guarded(std::int64_t{-1}, [&] {
    check(*call);
    ew::clp_emit::Task task = task_of(*call);
    return take_workspace(task, nullptr);
  });
}

int ew_cuda_clp_emit(const EwClpEmit* call, void* workspace, int64_t bytes, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    if (call->rows == 0) return 0;
    check_tensors(*call);
    ew::clp_emit::Task task = task_of(*call);
    expect_workspace(kOp, workspace, bytes, take_workspace(task, workspace));
    call->type == EW_HALF ? start<ew::kHalf>(task, stream) : start<ew::kBfloat16>(task, stream);
    return 0;
  });
}

}  // extern "C"
