// CompactTiles for ONNX Runtime on the CPU: turns a node's tensors and attributes into CompactTilesArgs.
#include "cpu/policy/compact_tiles.h"
#include "hosts/ort_cpu/attention_arguments.h"
#include "hosts/ort_cpu/declaration.h"
#include "ops/compact_tiles.h"

namespace ew::ort {
namespace {

using namespace compact;

// It has no activations, so one declaration serves every type of them.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    CompactTilesArgs args{attributes};
    args.moves = data<std::int32_t>(in[kMoves]);
    args.count = in[kMoves].shape[0];
    args.tile_count = in[kTiles].shape[0];
    const std::string fault = find_fault(args);
    if (!fault.empty()) throw std::invalid_argument(fault);
    args.tiles = static_cast<unsigned char*>(updated<2>(api, context, 0, in[kTiles], 1));
    if (in[kMarks].rank >= 0) {
      args.channels = in[kMarks].shape[1];
      args.marks = static_cast<float*>(updated<3>(api, context, 1, in[kMarks], sizeof(float)));
    }
    compact_tiles(args, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
