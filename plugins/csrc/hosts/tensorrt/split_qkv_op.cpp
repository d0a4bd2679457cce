// SplitQkv for TensorRT.
#include "hosts/tensorrt/operation.h"
#include "ops/split_qkv_call.h"

namespace ew::trt {
namespace {

using namespace ops::split;

class SplitQkv final : public KernelOperation<SplitQkv> {
 public:
  explicit SplitQkv(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override {
    const Extent tokens = axis_of(kPacked, 1), kv_heads = constant(attributes_.kv_heads);
    return {{tokens, constant(attributes_.query_heads), constant(attributes_.head_dim)},
            {tokens, kv_heads, constant(attributes_.head_dim)},
            {tokens, kv_heads, constant(attributes_.value_dim)}};
  }
  void expect_shapes(const Tensors& in) const override { ops::split::expect_shapes(attributes_, in.data()); }
  EwSplitQkv arguments(const Call& call) const {
    EwSplitQkv arguments = call_of(attributes_, call.in.data(), call.type);
    arguments.query = call.out[0];
    arguments.key = call.out[1];
    arguments.value = call.out[2];
    return arguments;
  }

 private:
  Attributes attributes_;
};

EW_REGISTER_OP(SplitQkv, &kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>);

}  // namespace
}  // namespace ew::trt
