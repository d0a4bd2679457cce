// KVarNAttention for TensorRT.
#include "hosts/tensorrt/attention_bound.h"
#include "ops/kvarn_attention_call.h"

namespace ew::trt {
namespace {

using namespace ops::kvarn;

class KVarNAttention final : public KernelOperation<KVarNAttention> {
 public:
  explicit KVarNAttention(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override {
    return {{axis_of(kQuery, 0), axis_of(kQuery, 1), axis_of(kQuery, 2)},
            {axis_of(kTiles, 0), axis_of(kTiles, 1)},
            {axis_of(kExact, 0), axis_of(kExact, 1), axis_of(kExact, 2), axis_of(kExact, 3)}};
  }
  std::vector<Axis> fixed_axes() const override { return {{kQuery, 1}, {kQuery, 2}, {kKey, 1}}; }
  void expect_shapes(const Tensors& in) const override { ops::kvarn::expect_shapes(attributes_, in.data()); }
  std::int64_t workspace_bound(const Call& largest) const override { return attention_bound(arguments(largest)); }
  EwKVarNAttention arguments(const Call& call) const {
    EwKVarNAttention arguments = call_of(attributes_, call.in.data(), call.type);
    arguments.attention.output = call.out[0];
    arguments.tiles = call.out[1];
    arguments.exact = call.out[2];
    return arguments;
  }

 private:
  Attributes attributes_;
};

EW_REGISTER_OP(KVarNAttention, &kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>);

}  // namespace
}  // namespace ew::trt
