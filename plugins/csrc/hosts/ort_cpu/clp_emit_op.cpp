// ClpEmit for ONNX Runtime on the CPU: turns a node's tensors and attributes into ClpEmitArgs.
#include "cpu/rows/clp_emit.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/clp_emit.h"

namespace ew::ort {
namespace {

using namespace clp;

// The CPU takes float32 only.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;
  mutable Pool<ClpScratch> pool;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    auto floats = [&](Input i) { return static_cast<const float*>(in[i].data); };
    ClpEmitArgs args{attributes};
    args.hidden = floats(kHidden);
    args.greedy = static_cast<const std::int64_t*>(in[kGreedy].data);
    args.classifier_weight = floats(kClassifierWeight);
    args.classifier_bias = floats(kClassifierBias);
    args.up_weight = floats(kUpWeight);
    args.up_bias = floats(kUpBias);
    args.out_bias = floats(kOutBias);
    args.out_weight = floats(kOutWeight);
    args.out_codes = static_cast<const std::int8_t*>(in[kOutCodes].data);
    args.out_scales = floats(kOutScales);
    args.sample_rows = static_cast<const std::int64_t*>(in[kSampleRows].data);
    args.query_starts = static_cast<const std::int32_t*>(in[kQueryStarts].data);
    args.sequences = args.sample_rows ? in[kQueryStarts].shape[0] - 1 : 0;
    args.rows = in[kHidden].shape[0];
    args.size = in[kHidden].shape[1];
    args.classes = in[kClassifierWeight].shape[0];
    args.inner = in[kUpWeight].shape[1];
    args.vocab = in[kOutBias].shape[1];
    args.tokens = static_cast<std::int64_t*>(output(api, context, 0, {args.rows, attributes.k}).data);
    args.counts = static_cast<std::int64_t*>(output(api, context, 1, {args.rows}).data);
    Pool<ClpScratch>::Loan scratch(pool);
    clp_emit(args, *scratch, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
