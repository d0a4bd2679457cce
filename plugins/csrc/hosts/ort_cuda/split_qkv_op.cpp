// SplitQkv for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/split_qkv_call.h"

namespace ew::ort {
namespace {

using namespace split;

template <ElementType kType>
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    EwSplitQkv call = call_of(attributes, in.data(), kCallType<kType>);
    call.query = output(api, context, 0, {call.tokens, call.query_heads, call.head_dim}).data;
    call.key = output(api, context, 1, {call.tokens, call.kv_heads, call.head_dim}).data;
    call.value = output(api, context, 2, {call.tokens, call.kv_heads, call.value_dim}).data;
    start(api, context, memory, call);
  }
};

EW_REGISTER_TYPED_OP(Kernel);

}  // namespace
}  // namespace ew::ort
