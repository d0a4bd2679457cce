// SplitQkv for TensorRT.
#include "hosts/tensorrt/ops.h"
#include "ops/split_qkv_call.h"

namespace ew::trt {
namespace {

using namespace ops::split;

class SplitQkv final : public Operation {
 public:
  explicit SplitQkv(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override {
    const Extent tokens = axis_of(kPacked, 1), kv_heads = constant(attributes_.kv_heads);
    return {{tokens, constant(attributes_.query_heads), constant(attributes_.head_dim)},
            {tokens, kv_heads, constant(attributes_.head_dim)},
            {tokens, kv_heads, constant(attributes_.value_dim)}};
  }
  void expect_shapes(const Tensors& in) const override { ops::split::expect_shapes(attributes_, in.data()); }
  std::int64_t workspace(const Call& call) const override {
    return workspace_of(arguments(call), ew_cuda_split_qkv_workspace);
  }
  void start(const Call& call, void* workspace, void* stream) const override {
    start_with(arguments(call), ew_cuda_split_qkv_workspace, ew_cuda_split_qkv, workspace, stream);
  }

 private:
  EwSplitQkv arguments(const Call& call) const {
    EwSplitQkv arguments = call_of(attributes_, call.in.data(), call.type);
    arguments.query = call.out[0];
    arguments.key = call.out[1];
    arguments.value = call.out[2];
    return arguments;
  }

  Attributes attributes_;
};

}  // namespace

Op split_qkv() { return {{&kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>}, make<SplitQkv>}; }

}  // namespace ew::trt
