// DepthMix for TensorRT.
#include "hosts/tensorrt/ops.h"
#include "ops/depth_mix_call.h"

namespace ew::trt {
namespace {

using namespace ops::depth;

class DepthMix final : public Operation {
 public:
  explicit DepthMix(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override { return {{axis_of(kValue, 0), axis_of(kValue, 1), axis_of(kValue, 2)}}; }
  void expect_shapes(const Tensors& in) const override { ops::depth::expect_shapes(in.data(), in.size()); }
  std::int64_t workspace(const Call& call) const override {
    const std::vector<const void*> sources = sources_of(call.in.data(), call.in.size());
    return workspace_of(arguments(call, sources), ew_cuda_depth_mix_workspace);
  }
  void start(const Call& call, void* workspace, void* stream) const override {
    const std::vector<const void*> sources = sources_of(call.in.data(), call.in.size());
    start_with(arguments(call, sources), ew_cuda_depth_mix_workspace, ew_cuda_depth_mix, workspace, stream);
  }

 private:
  EwDepthMix arguments(const Call& call, const std::vector<const void*>& sources) const {
    EwDepthMix arguments = call_of(attributes_, call.in.data(), sources, call.type);
    arguments.mixed = call.out[0];
    return arguments;
  }

  Attributes attributes_;
};

}  // namespace

Op depth_mix() { return {{&kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>}, make<DepthMix>}; }

}  // namespace ew::trt
