// DepthMix for TensorRT.
#include "hosts/tensorrt/operation.h"
#include "ops/depth_mix_call.h"

namespace ew::trt {
namespace {

using namespace ops::depth;

class DepthMix final : public KernelOperation<DepthMix> {
 public:
  explicit DepthMix(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override { return {{axis_of(kValue, 0), axis_of(kValue, 1), axis_of(kValue, 2)}}; }
  void expect_shapes(const Tensors& in) const override { ops::depth::expect_shapes(in.data(), in.size()); }
  MixCall arguments(const Call& call) const {
    MixCall arguments = call_of(attributes_, call.in.data(), call.in.size(), call.type);
    arguments.mixed = call.out[0];
    return arguments;
  }

 private:
  Attributes attributes_;
};

EW_REGISTER_OP(DepthMix, &kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>);

}  // namespace
}  // namespace ew::trt
