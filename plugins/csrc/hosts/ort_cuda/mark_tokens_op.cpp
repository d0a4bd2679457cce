// MarkTokens for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/mark_tokens_call.h"

namespace ew::ort {
namespace {

using namespace marks;

template <ElementType kType>
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    EwMarkTokens call = call_of(attributes, in.data(), kCallType<kType>);
    const std::int64_t* s = in[kMarks].shape;
    const Tensor marks_out = output(api, context, 0, {s[0], s[1], s[2]});
    expect_in_place("marks_out", in[kMarks], marks_out);
    call.marks = static_cast<float*>(marks_out.data);
    start(api, context, memory, call);
  }
};

EW_REGISTER_TYPED_OP(Kernel);

}  // namespace
}  // namespace ew::ort
