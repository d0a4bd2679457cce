// HoldQueries for TensorRT.
#include "hosts/tensorrt/operation.h"
#include "ops/hold_queries_call.h"

namespace ew::trt {
namespace {

using namespace ops::hold;

class HoldQueries final : public KernelOperation<HoldQueries> {
 public:
  explicit HoldQueries(const Fields&) {}

  std::vector<Shape> outputs() const override {
    return {{axis_of(kRing, 0), axis_of(kRing, 1), axis_of(kRing, 2), axis_of(kRing, 3)}};
  }
  void expect_shapes(const Tensors& in) const override { ops::hold::expect_shapes(in.data()); }
  EwHoldQueries arguments(const Call& call) const {
    EwHoldQueries arguments = call_of(call.in.data(), call.type);
    arguments.ring = call.out[0];
    return arguments;
  }
};

EW_REGISTER_OP(HoldQueries, &kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>);

}  // namespace
}  // namespace ew::trt
