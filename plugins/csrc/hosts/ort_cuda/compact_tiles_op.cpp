// CompactTiles for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/compact_tiles_call.h"

namespace ew::ort {
namespace {

using namespace compact;

// It has no activations, so one declaration serves every type of them.
struct Kernel : DeviceKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using DeviceKernel::DeviceKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    EwCompactTiles call = call_of(attributes, in.data());
    const Tensor tiles = output(api, context, 0, {in[kTiles].shape[0], in[kTiles].shape[1]});
    expect_in_place("tiles_out", in[kTiles], tiles);
    call.tiles = tiles.data;
    if (in[kMarks].rank >= 0) {
      const std::int64_t* s = in[kMarks].shape;
      const Tensor marks = output(api, context, 1, {s[0], s[1], s[2]});
      expect_in_place("marks_out", in[kMarks], marks);
      call.marks = static_cast<float*>(marks.data);
    }
    start(api, context, memory, call);
  }
};

EW_REGISTER_DEVICE_OP(Kernel);

}  // namespace
}  // namespace ew::ort
