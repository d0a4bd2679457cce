// GreedySample for TensorRT.
#include "hosts/tensorrt/operation.h"
#include "ops/greedy_sample_call.h"

namespace ew::trt {
namespace {

using namespace ops::greedy;

class GreedySample final : public KernelOperation<GreedySample> {
 public:
  explicit GreedySample(const Fields&) {}

  std::vector<Shape> outputs() const override { return {{axis_of(kLogits, 0)}}; }
  void expect_shapes(const Tensors& in) const override { ops::greedy::expect_shapes(in.data()); }
  EwGreedySample arguments(const Call& call) const {
    EwGreedySample arguments = call_of(call.in.data());
    arguments.tokens = static_cast<std::int64_t*>(call.out[0]);
    return arguments;
  }
};

EW_REGISTER_OP(GreedySample, &kDeclaration<ops::kFloat>);

}  // namespace
}  // namespace ew::trt
