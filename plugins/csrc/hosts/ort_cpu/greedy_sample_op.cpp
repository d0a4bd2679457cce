// GreedySample for ONNX Runtime on the CPU.
#include "cpu/rows/greedy_sample.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/greedy_sample.h"

namespace ew::ort {
namespace {

using namespace greedy;

struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const Tensor logits = input(api, context, 0);
    expect_shapes(&logits);
    const std::int64_t rows = logits.shape[0], vocab = logits.shape[1];
    auto* tokens = static_cast<std::int64_t*>(output(api, context, 0, {rows}).data);
    greedy_sample(static_cast<const float*>(logits.data), rows, vocab, tokens, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
