// TokenScores for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/token_scores_call.h"

namespace ew::ort {
namespace {

using namespace scores;

template <ElementType kType>
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    EwTokenScores call = call_of(attributes, in.data(), kCallType<kType>);
    const std::int64_t tokens = call.table_width * kTileTokens;
    call.importance = static_cast<float*>(output(api, context, 0, {call.rows, call.kv_heads, tokens}).data);
    const Tensor redundancy = output(api, context, 1, {call.rows, call.kv_heads, tokens * attributes.redundancy});
    if (attributes.redundancy == 1) call.redundancy = static_cast<float*>(redundancy.data);
    start(api, context, memory, call);
  }
};

EW_REGISTER_TYPED_OP(Kernel);

}  // namespace
}  // namespace ew::ort
