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
    const std::vector<const void*> sources = sources_of(in.data(), count);
    EwDepthMix call = call_of(attributes, in.data(), sources, kCallType<kType>);
    call.mixed = output(api, context, 0, {call.tokens, call.kv_heads, call.value_dim}).data;
    start(api, context, memory, call, ew_cuda_depth_mix_workspace, ew_cuda_depth_mix);
  }
};

}  // namespace

const DeclaredOp& depth_mix_op(ElementType type) { return op_of<Kernel>(type); }

}  // namespace ew::ort
