// BlockLookup for ONNX Runtime on the CPU: turns a node's tensors and attributes into BlockLookupArgs.
#include "cpu/linear/block_lookup.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/block_lookup.h"

namespace ew::ort {
namespace {

using namespace block_lookup_op;

struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    BlockLookupArgs args{attributes};
    args.panels = static_cast<const unsigned char*>(in[kPanels].data);
    args.ids = static_cast<const std::int64_t*>(in[kIds].data);
    args.tokens = in[kIds].shape[1];
    const std::string fault = find_fault(args);
    if (!fault.empty()) throw std::invalid_argument(fault);
    args.out = static_cast<float*>(output(api, context, 0, {1, args.tokens, args.columns}).data);
    block_lookup(args, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
