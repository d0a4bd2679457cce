// GreedySample for TensorRT.
#include "hosts/tensorrt/ops.h"
#include "ops/greedy_sample_call.h"

namespace ew::trt {
namespace {

using namespace ops::greedy;

class GreedySample final : public Operation {
 public:
  explicit GreedySample(const Fields&) {}

  std::vector<Shape> outputs() const override { return {{axis_of(kLogits, 0)}}; }
  void expect_shapes(const Tensors& in) const override { ops::greedy::expect_shapes(in.data()); }
  std::int64_t workspace(const Call& call) const override {
    return workspace_of(arguments(call), ew_cuda_greedy_sample_workspace);
  }
  void start(const Call& call, void* workspace, void* stream) const override {
    start_with(arguments(call), ew_cuda_greedy_sample_workspace, ew_cuda_greedy_sample, workspace, stream);
  }

 private:
  EwGreedySample arguments(const Call& call) const {
    EwGreedySample arguments = call_of(call.in.data());
    arguments.tokens = static_cast<std::int64_t*>(call.out[0]);
    return arguments;
  }
};

}  // namespace

Op greedy_sample() { return {{&kDeclaration<ops::kFloat>}, make<GreedySample>}; }

}  // namespace ew::trt
