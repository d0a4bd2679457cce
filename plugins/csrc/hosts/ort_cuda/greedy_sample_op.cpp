// GreedySample for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/greedy_sample_call.h"

namespace ew::ort {
namespace {

using namespace greedy;

struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const Tensor logits = input(api, context, 0);
    expect_shapes(&logits);
    EwGreedySample call = call_of(&logits);
    call.tokens = static_cast<std::int64_t*>(output(api, context, 0, {call.rows}).data);
    start(api, context, memory, call);
  }
};

EW_REGISTER_DEVICE_OP(Kernel);

}  // namespace
}  // namespace ew::ort
