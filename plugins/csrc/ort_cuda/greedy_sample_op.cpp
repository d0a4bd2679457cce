// GreedySample for ONNX Runtime's CUDA provider; logits are float32 in every graph.
#include "device_call.h"

namespace ew::ort {
namespace {

const Port kInputs[] = {{"logits", kFloat}};
const Port kOutputs[] = {{"tokens", kInt64}};
const Declaration kDeclaration = {"GreedySample", 1, kInputs, 1, kOutputs, 1, nullptr, 0};

struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration;
  const Api& api;
  DeviceMemory memory;

  Kernel(const Api& host, const KernelInfo* info) : api(host), memory(host, info) {}

  void compute(KernelContext* context) const {
    const Tensor logits = input(api, context, 0);
    expect_shape("logits", logits, {-1, -1}, "[N, V]");
    EwGreedySample call{};
    call.logits = static_cast<const float*>(logits.data);
    call.rows = logits.shape[0];
    call.vocab = logits.shape[1];
    call.tokens = static_cast<std::int64_t*>(output(api, context, 0, {call.rows}).data);
    start(api, context, memory, call, ew_cuda_greedy_sample_workspace, ew_cuda_greedy_sample);
  }
};

}  // namespace

const DeclaredOp& greedy_sample_op() {
  static const DeclaredOp op = declare_on_device<Kernel>(kDeclaration);
  return op;
}

}  // namespace ew::ort
