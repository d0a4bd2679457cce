// HoldQueries for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/hold_queries_call.h"

namespace ew::ort {
namespace {

using namespace hold;

template <ElementType kType>
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(in.data());
    EwHoldQueries call = call_of(in.data(), kCallType<kType>);
    const std::int64_t* s = in[kRing].shape;
    const Tensor ring = output(api, context, 0, {s[0], s[1], s[2], s[3]});
    expect_in_place("ring_out", in[kRing], ring);
    call.ring = ring.data;
    start(api, context, memory, call);
  }
};

EW_REGISTER_TYPED_OP(Kernel);

}  // namespace
}  // namespace ew::ort
