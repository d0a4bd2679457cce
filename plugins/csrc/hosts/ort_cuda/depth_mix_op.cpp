// DepthMix for ONNX Runtime's CUDA provider.
#include <vector>

#include "hosts/ort_cuda/device_call.h"
#include "ops/depth_mix_call.h"

namespace ew::ort {
namespace {

using namespace depth;

template <ElementType kType>
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const std::size_t count = input_count(api, context);
    std::vector<Tensor> in(count);
    for (std::size_t i = 0; i < count; ++i) in[i] = input(api, context, i);
    expect_shapes(in.data(), count);
    MixCall call = call_of(attributes, in.data(), count, kCallType<kType>);
    call.mixed = output(api, context, 0, {call.tokens, call.kv_heads, call.value_dim}).data;
    start(api, context, memory, call);
  }
};

EW_REGISTER_TYPED_OP(Kernel);

}  // namespace
}  // namespace ew::ort
