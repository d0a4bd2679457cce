// ClpEmit for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/clp_emit_call.h"

namespace ew::ort {
namespace {

using namespace clp;

template <ElementType kType>
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    EwClpEmit call = call_of(attributes, in.data(), kCallType<kType>);
    call.tokens = static_cast<std::int64_t*>(output(api, context, 0, {call.rows, call.extra + 1}).data);
    call.counts = static_cast<std::int64_t*>(output(api, context, 1, {call.rows}).data);
    start(api, context, memory, call);
  }
};

EW_REGISTER_TYPED_OP(Kernel);

}  // namespace
}  // namespace ew::ort
