// MarkTokens for ONNX Runtime on the CPU: turns a node's tensors and attributes into MarkTokensArgs.
#include "cpu/policy/mark_tokens.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/stored_arguments.h"
#include "ops/mark_tokens.h"

namespace ew::ort {
namespace {

using namespace marks;

// The CPU takes float32 only.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    MarkTokensArgs args{attributes};
    args.query = data<float>(in[kQuery]);
    args.stored = stored_keys(attributes, stored_tokens(in.data()), in[kQuery].shape[2]);
    args.starts = data<std::int32_t>(in[kQueryStarts]);
    args.positions = data<std::int64_t>(in[kPositionIds]);
    args.sinks = data<float>(in[kSinks]);
    args.values = data<float>(in[kValues]);
    args.tokens = in[kQuery].shape[0];
    args.query_heads = in[kQuery].shape[1];
    const std::string fault = find_fault(args);
    if (!fault.empty()) throw std::invalid_argument(fault);
    args.marks = static_cast<float*>(updated<3>(api, context, 0, in[kMarks], sizeof(float)));
    mark_tokens(args, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
