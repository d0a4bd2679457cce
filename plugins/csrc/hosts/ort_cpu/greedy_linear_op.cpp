// GreedyLinear for ONNX Runtime on the CPU: a BlockLinear that chooses, too.
#include "cpu/linear/block_linear.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/greedy_linear.h"

namespace ew::ort {
namespace {

using namespace greedy_linear_op;

struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;
  mutable Pool<BlockLinearScratch> pool;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    BlockLinearArgs args{};
    args.rows = args.width = attributes.rows;
    args.columns = attributes.columns;
    args.bits = attributes.bits;
    args.block = attributes.block;
    args.scale_bits = attributes.scale_bits;
    args.minima = attributes.minima;
    args.exact = attributes.exact;
    args.epsilon = attributes.epsilon;
    args.x = static_cast<const float*>(in[kX].data);
    args.panels = static_cast<const unsigned char*>(in[kPanels].data);
    args.bias = static_cast<const float*>(in[kBias].data);
    args.norm = static_cast<const float*>(in[kNorm].data);
    args.tokens = in[kX].shape[1];
    auto* logits = static_cast<float*>(output(api, context, 0, {args.tokens, args.rows}).data);
    if (*static_cast<const std::int64_t*>(in[kWanted].data)) args.out = logits;
    args.chosen = static_cast<std::int64_t*>(output(api, context, 1, {args.tokens}).data);
    Pool<BlockLinearScratch>::Loan scratch(pool);
    block_linear(args, *scratch, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
