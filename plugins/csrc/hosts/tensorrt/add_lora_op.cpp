// AddLora for TensorRT.
#include "hosts/tensorrt/operation.h"
#include "ops/add_lora_call.h"

namespace ew::trt {
namespace {

using namespace ops::add_lora_op;

class AddLora final : public KernelOperation<AddLora> {
 public:
  explicit AddLora(const Fields& fields) : attributes_(fields) {}

  std::vector<Shape> outputs() const override { return {{constant(1), axis_of(kBase, 1), axis_of(kBase, 2)}}; }
  void expect_shapes(const Tensors& in) const override {
    ops::add_lora_op::expect_shapes(attributes_, in.data(), in.size());
  }
  LoraCall arguments(const Call& call) const {
    LoraCall arguments = call_of(attributes_, call.in.data(), call.in.size(), call.type);
    arguments.sum = call.out[0];
    return arguments;
  }

 private:
  Attributes attributes_;
};

EW_REGISTER_OP(AddLora, &kDeclaration<ops::kFloat16>, &kDeclaration<ops::kBfloat16>);

}  // namespace
}  // namespace ew::trt
