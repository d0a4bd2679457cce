// BlockLinear for ONNX Runtime on the CPU: turns a node's tensors and attributes into BlockLinearArgs.
#include "cpu/linear/block_linear.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/block_linear.h"

namespace ew::ort {
namespace {

using namespace block_linear_op;

struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  static constexpr InPlace in_place{kResidual, 0};
  using NodeKernel::NodeKernel;
  mutable Pool<BlockLinearScratch> pool;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    BlockLinearArgs args{attributes};
    args.x = static_cast<const float*>(in[kX].data);
    args.panels = static_cast<const unsigned char*>(in[kPanels].data);
    args.bias = static_cast<const float*>(in[kBias].data);
    args.residual = static_cast<const float*>(in[kResidual].data);
    args.norm = static_cast<const float*>(in[kNorm].data);
    args.tokens = tokens_of(attributes, in[kX]);
    args.out = static_cast<float*>(output(api, context, 0, {1, args.tokens, args.width}).data);
    Pool<BlockLinearScratch>::Loan scratch(pool);
    block_linear(args, *scratch, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
