// MarkTokens for TensorRT.
#include "hosts/tensorrt/operation.h"
#include "ops/mark_tokens_call.h"

namespace ew::trt {
namespace {

using namespace ops::marks;

class MarkTokens final : public KernelOperation<MarkTokens> {
 public:
  explicit MarkTokens(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override { return {{axis_of(kMarks, 0), axis_of(kMarks, 1), axis_of(kMarks, 2)}}; }
  std::vector<Axis> fixed_axes() const override { return {{kQuery, 1}, {kQuery, 2}}; }
  void expect_shapes(const Tensors& in) const override { ops::marks::expect_shapes(attributes_, in.data()); }
  EwMarkTokens arguments(const Call& call) const {
    EwMarkTokens arguments = call_of(attributes_, call.in.data(), call.type);
    arguments.marks = static_cast<float*>(call.out[0]);
    return arguments;
  }

 private:
  Attributes attributes_;
};

EW_REGISTER_OP(MarkTokens, &kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>);

}  // namespace
}  // namespace ew::trt
