// ew_cuda_greedy_sample: checks a call and starts its kernel.
#include <limits>

#include "generated/calls/greedy_sample.h"
#include "kernels/emission/greedy_sample.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

constexpr const char* kOp = "GreedySample";

void check(const EwGreedySample& call) {
  expect(call.rows >= 0, kOp, "rows", call.rows, "0 or more");
  expect(call.vocab > 0 && call.vocab < std::numeric_limits<std::int32_t>::max(), kOp, "vocab", call.vocab,
         "1 or more");
  if (call.rows == 0) return;
  expect_pointer(kOp, "logits", call.logits);
  expect_pointer(kOp, "tokens", call.tokens);
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_greedy_sample_workspace(const EwGreedySample* call) {
  return guarded<int64_t>(-1, [call] {
    check(*call);
    return 0;
  });
}

int ew_cuda_greedy_sample(const EwGreedySample* call, void*, int64_t, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    const ew::GreedySampleArguments args{call->logits, call->tokens, call->vocab};
    launch(kOp, ew::greedy_sample_kernel, Grid{call->rows}, ew::kGreedyThreads,
           sizeof(ew::Largest) * (ew::kGreedyThreads / ew::kWarp), stream, args);
    return 0;
  });
}

}  // extern "C"
