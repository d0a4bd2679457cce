// ClpEmit for TensorRT.
#include "hosts/tensorrt/ops.h"
#include "ops/clp_emit_call.h"

namespace ew::trt {
namespace {

using namespace ops::clp;

class ClpEmit final : public Operation {
 public:
  explicit ClpEmit(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override {
    return {{axis_of(kHidden, 0), constant(attributes_.extra() + 1)}, {axis_of(kHidden, 0)}};
  }
  void expect_shapes(const Tensors& in) const override { ops::clp::expect_shapes(attributes_, in.data()); }
  std::int64_t workspace(const Call& call) const override {
    return workspace_of(arguments(call), ew_cuda_clp_emit_workspace);
  }
  void start(const Call& call, void* workspace, void* stream) const override {
    start_with(arguments(call), ew_cuda_clp_emit_workspace, ew_cuda_clp_emit, workspace, stream);
  }

 private:
  EwClpEmit arguments(const Call& call) const {
    EwClpEmit arguments = call_of(attributes_, call.in.data(), call.type);
    arguments.tokens = static_cast<std::int64_t*>(call.out[0]);
    arguments.counts = static_cast<std::int64_t*>(call.out[1]);
    return arguments;
  }

  Attributes attributes_;
};

}  // namespace

Op clp_emit() { return {{&kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>}, make<ClpEmit>}; }

}  // namespace ew::trt
