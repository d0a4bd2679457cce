// ew_cuda_int4_linear: checks a call and starts the kernel for its number of rows and its size of blocks.
#include <limits>
#include <string>

#include "generated/calls/int4_linear.h"
#include "kernels/rows/int4_linear.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

using namespace int4_linear;

constexpr const char* kOp = "Int4Linear";

void check_block(std::int64_t block) {
  std::string known;
#define EW_ADD(size)         \
  if (block == size) return; \
  known += (known.empty() ? "" : ", ") + std::string(EW_TEXT(size));
  EW_INT4_LINEAR_BLOCKS(EW_ADD)
#undef EW_ADD
  expect(false, kOp, "block", block, "one of " + known);
}

void check(const EwInt4Linear& call) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() - 1024;
  const auto range = [](const char* name, std::int64_t got, std::int64_t least, std::int64_t most) {
    expect(got >= least && got <= most, kOp, name, got, std::to_string(least) + " to " + std::to_string(most));
  };
  expect_type(kOp, call.type);
  check_block(call.block);
  range("rows", call.rows, 0, 65535 * kRows);  // blocks of a grid's second axis
  range("outputs", call.outputs, 1, kMost);
  range("size", call.size, 1, kMost);
  expect(call.size % 32 == 0 && call.size % call.block == 0, kOp, "size", call.size,
         "a multiple of 32 and of block = " + std::to_string(call.block));
}

template <Type type, int kTiles, int kScales>
void start(const Task& task, void* stream) {
  launch(kOp, int4_linear_kernel<type, kTiles, kScales>,
         Grid{(task.outputs + kOutputs - 1) / kOutputs, (task.rows + kRows * kTiles - 1) / (kRows * kTiles)}, kThreads,
         kSharedBytes, stream, task);
}

template <Type type>
void start(const Task& task, void* stream) {
  if (task.block == 16) return task.rows <= kRows ? start<type, 1, 2>(task, stream) : start<type, 2, 2>(task, stream);
  task.rows <= kRows ? start<type, 1, 1>(task, stream) : start<type, 2, 1>(task, stream);
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_int4_linear_workspace(const EwInt4Linear* call) {
  return guarded(std::int64_t{-1}, [&] {
    check(*call);
    return std::int64_t{0};
  });
}

int ew_cuda_int4_linear(const EwInt4Linear* call, void*, int64_t, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    if (call->rows == 0) return 0;
    expect_tensor(kOp, "x", call->x);
    expect_tensor(kOp, "codes", call->codes);
    expect_pointer(kOp, "scales", call->scales);
    expect_pointer(kOp, "out", call->out);
    ew::int4_linear::Task task{};
    task.x = static_cast<const std::uint16_t*>(call->x);
    task.codes = static_cast<const unsigned char*>(call->codes);
    task.scales = static_cast<const std::uint16_t*>(call->scales);
    task.out = static_cast<std::uint16_t*>(call->out);
    task.rows = static_cast<int>(call->rows);
    task.outputs = static_cast<int>(call->outputs);
    task.size = static_cast<int>(call->size);
    task.block = static_cast<int>(call->block);
    call->type == EW_HALF ? start<ew::kHalf>(task, stream) : start<ew::kBfloat16>(task, stream);
    return 0;
  });
}

}  // extern "C"
