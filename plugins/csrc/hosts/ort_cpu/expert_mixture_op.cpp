// ExpertMixture for ONNX Runtime on the CPU: turns a node's tensors and attributes into ExpertMixtureArgs.
#include "cpu/linear/expert_mixture.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/expert_mixture.h"

namespace ew::ort {
namespace {

using namespace expert_mixture_op;

struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    ExpertMixtureArgs args{attributes};
    args.x = static_cast<const float*>(in[kX].data);
    args.ids = static_cast<const std::int64_t*>(in[kIds].data);
    args.weights = static_cast<const float*>(in[kWeights].data);
    args.up = static_cast<const unsigned char*>(in[kUp].data);
    args.down = static_cast<const unsigned char*>(in[kDown].data);
    args.up_bias = static_cast<const float*>(in[kUpBias].data);
    args.down_bias = static_cast<const float*>(in[kDownBias].data);
    args.tokens = in[kIds].shape[0];
    args.chosen = in[kIds].shape[1];
    args.experts = in[kUp].shape[0];
    const std::string fault = find_fault(args);
    if (!fault.empty()) throw std::invalid_argument(fault);
    args.out = static_cast<float*>(output(api, context, 0, {args.tokens, args.columns}).data);
    expert_mixture(args, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
