// ClpEmit for TensorRT.
#include "hosts/tensorrt/operation.h"
#include "ops/clp_emit_call.h"

namespace ew::trt {
namespace {

using namespace ops::clp;

class ClpEmit final : public KernelOperation<ClpEmit> {
 public:
  explicit ClpEmit(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override {
    return {{axis_of(kHidden, 0), constant(attributes_.extra() + 1)}, {axis_of(kHidden, 0)}};
  }
  void expect_shapes(const Tensors& in) const override { ops::clp::expect_shapes(attributes_, in.data()); }
  EwClpEmit arguments(const Call& call) const {
    EwClpEmit arguments = call_of(attributes_, call.in.data(), call.type);
    arguments.tokens = static_cast<std::int64_t*>(call.out[0]);
    arguments.counts = static_cast<std::int64_t*>(call.out[1]);
    return arguments;
  }

 private:
  Attributes attributes_;
};

EW_REGISTER_OP(ClpEmit, &kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>);

}  // namespace
}  // namespace ew::trt
