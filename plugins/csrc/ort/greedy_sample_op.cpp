// GreedySample for ONNX Runtime.
#include "../cpu/row_ops.h"
#include "declaration.h"
#include "host.h"

namespace ew::ort {
namespace {

const Port kInputs[] = {{"logits", kFloat}};
const Port kOutputs[] = {{"tokens", kInt64}};
const Declaration kDeclaration = {"GreedySample", 1, kInputs, 1, kOutputs, 1, nullptr, 0};

struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration;
  const Api& api;

  Kernel(const Api& host, const KernelInfo*) : api(host) {}

  void compute(KernelContext* context) const {
    const Tensor logits = input(api, context, 0);
    expect_shape("logits", logits, {-1, -1}, "[N, V]");
    const std::int64_t rows = logits.shape[0], vocab = logits.shape[1];
    if (vocab < 1) fail("logits", "V = 0", "1 or more");
    auto* tokens = static_cast<std::int64_t*>(output(api, context, 0, {rows}).data);
    greedy_sample(static_cast<const float*>(logits.data), rows, vocab, tokens, HostThreads(api, context));
  }
};

}  // namespace

const DeclaredOp& greedy_sample_op() {
  static const DeclaredOp op = declare<Kernel>(kDeclaration);
  return op;
}

}  // namespace ew::ort
