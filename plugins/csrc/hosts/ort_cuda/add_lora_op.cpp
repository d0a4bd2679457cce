// AddLora for ONNX Runtime's CUDA provider.
#include <vector>

#include "hosts/ort_cuda/device_call.h"
#include "ops/add_lora_call.h"

namespace ew::ort {
namespace {

using namespace add_lora_op;

template <ElementType kType>
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  static constexpr InPlace in_place{kBase, 0};
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const std::size_t count = input_count(api, context);
    std::vector<Tensor> in(count);
    for (std::size_t i = 0; i < count; ++i) in[i] = input(api, context, i);
    expect_shapes(attributes, in.data(), count);
    LoraCall call = call_of(attributes, in.data(), count, kCallType<kType>);
    call.sum = output(api, context, 0, {1, call.tokens, call.outputs}).data;
    start(api, context, memory, call);
  }
};

EW_REGISTER_TYPED_OP(Kernel);

}  // namespace
}  // namespace ew::ort
