// ew_cuda_split_qkv: checks a call and starts its kernel.
#include <limits>

#include "generated/calls/split_qkv.h"
#include "kernels/rows/split_qkv.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

constexpr const char* kOp = "SplitQkv";
constexpr std::int64_t kMostHeadDim = 4096;  // products of sizes stay far below 2^31

void expect_size(const char* name, std::int64_t got) {
  expect(got >= 1 && got <= kMostHeadDim, kOp, name, got, "1 to " + std::to_string(kMostHeadDim));
}

void check(const EwSplitQkv& call) {
  expect(call.tokens >= 0 && call.tokens <= std::numeric_limits<std::int32_t>::max(), kOp, "tokens", call.tokens,
         "0 or more");
  expect_size("query_heads", call.query_heads);
  expect_size("kv_heads", call.kv_heads);
  expect_size("head_dim", call.head_dim);
  expect_size("value_dim", call.value_dim);
  expect(call.half >= 0 && 2 * call.half <= call.head_dim, kOp, "half", call.half, "0 to half of head_dim");
  expect(call.type == EW_HALF || call.type == EW_BFLOAT16, kOp, "type", call.type, "0 (half) or 1 (bfloat16)");
  if (!(call.epsilon >= 0.0f)) refuse(kOp, "epsilon", std::to_string(call.epsilon), "0 or more");
  if ((call.query_norm == nullptr) != (call.key_norm == nullptr))
    refuse(kOp, "key_norm", "only one of the two", "both or neither of it and query_norm");
  if (call.tokens == 0) return;
  if (call.half > 0) {
    expect_pointer(kOp, "cos", call.cos);
    expect_pointer(kOp, "sin", call.sin);
  }
  for (const auto& [name, pointer] : {std::pair<const char*, const void*>{"packed", call.packed},
                                      {"query", call.query},
                                      {"key", call.key},
                                      {"value", call.value}})
    expect_pointer(kOp, name, pointer);
}

SplitQkvArguments arguments(const EwSplitQkv& call) {
  SplitQkvArguments args{};
  args.packed = static_cast<const std::uint16_t*>(call.packed);
  args.cos = static_cast<const std::uint16_t*>(call.cos);
  args.sin = static_cast<const std::uint16_t*>(call.sin);
  args.query_norm = static_cast<const std::uint16_t*>(call.query_norm);
  args.key_norm = static_cast<const std::uint16_t*>(call.key_norm);
  args.query = static_cast<std::uint16_t*>(call.query);
  args.key = static_cast<std::uint16_t*>(call.key);
  args.value = static_cast<std::uint16_t*>(call.value);
  args.query_heads = static_cast<int>(call.query_heads);
  args.kv_heads = static_cast<int>(call.kv_heads);
  args.head_dim = static_cast<int>(call.head_dim);
  args.value_dim = static_cast<int>(call.value_dim);
  args.half = static_cast<int>(call.half);
  args.epsilon = call.epsilon;
  return args;
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_split_qkv_workspace(const EwSplitQkv* call) {
  return guarded<int64_t>(-1, [call] {
    check(*call);
    return 0;
  });
}

int ew_cuda_split_qkv(const EwSplitQkv* call, void*, int64_t, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    const auto kernel = call->type == EW_HALF ? ew::split_qkv_kernel<ew::kHalf> : ew::split_qkv_kernel<ew::kBfloat16>;
    launch(kOp, kernel, Grid{call->tokens}, ew::kSplitThreads, 0, stream, arguments(*call));
    return 0;
  });
}

}  // extern "C"
