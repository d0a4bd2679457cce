// TokenScores for TensorRT.
#include "hosts/tensorrt/operation.h"
#include "ops/token_scores_call.h"

namespace ew::trt {
namespace {

using namespace ops::scores;

class TokenScores final : public KernelOperation<TokenScores> {
 public:
  explicit TokenScores(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override {
    const Extent rows = axis_of(kSlots, 0), heads = constant(attributes_.kv_heads);
    const Extent tokens = axis_of(kTileTable, 3, kTileTokens);
    return {{rows, heads, tokens}, {rows, heads, attributes_.redundancy == 1 ? tokens : constant(0)}};
  }
  std::vector<Axis> fixed_axes() const override { return {{kRing, 1}, {kRing, 3}}; }
  void expect_shapes(const Tensors& in) const override { ops::scores::expect_shapes(attributes_, in.data()); }
  EwTokenScores arguments(const Call& call) const {
    EwTokenScores arguments = call_of(attributes_, call.in.data(), call.type);
    arguments.importance = static_cast<float*>(call.out[0]);
    if (attributes_.redundancy == 1) arguments.redundancy = static_cast<float*>(call.out[1]);
    return arguments;
  }

 private:
  Attributes attributes_;
};

EW_REGISTER_OP(TokenScores, &kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>);

}  // namespace
}  // namespace ew::trt
