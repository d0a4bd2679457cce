// CompactTiles for TensorRT.
#include "hosts/tensorrt/operation.h"
#include "ops/compact_tiles_call.h"

namespace ew::trt {
namespace {

using namespace ops::compact;

class CompactTiles final : public KernelOperation<CompactTiles> {
 public:
  explicit CompactTiles(const Fields& fields) : attributes_(fields), has_marks_(fields.present() >> kMarks & 1) {}

  std::vector<Shape> outputs() const override {
    const Shape tiles{axis_of(kTiles, 0), axis_of(kTiles, 1)};
    if (!has_marks_) return {tiles};
    return {tiles, {axis_of(kMarks, 0), axis_of(kMarks, 1), axis_of(kMarks, 2)}};
  }
  void expect_shapes(const Tensors& in) const override { ops::compact::expect_shapes(attributes_, in.data()); }
  EwCompactTiles arguments(const Call& call) const {
    EwCompactTiles arguments = call_of(attributes_, call.in.data());
    arguments.tiles = call.out[0];
    if (has_marks_) arguments.marks = static_cast<float*>(call.out[1]);
    return arguments;
  }

 private:
  Attributes attributes_;
  bool has_marks_;
};

EW_REGISTER_OP(CompactTiles, &kDeclaration<ops::kFloat>);

}  // namespace
}  // namespace ew::trt
