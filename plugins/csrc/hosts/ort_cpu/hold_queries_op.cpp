// HoldQueries for ONNX Runtime on the CPU: turns a node's tensors into HoldQueriesArgs.
#include "cpu/policy/hold_queries.h"
#include "hosts/ort_cpu/attention_arguments.h"
#include "hosts/ort_cpu/declaration.h"
#include "ops/hold_queries.h"

namespace ew::ort {
namespace {

using namespace hold;

// The CPU takes float32 only.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(in.data());
    HoldQueriesArgs args{};
    args.query = data<float>(in[kQuery]);
    args.starts = data<std::int32_t>(in[kQueryStarts]);
    args.slots = data<std::int32_t>(in[kSlots]);
    args.positions = data<std::int64_t>(in[kPositionIds]);
    args.tokens = in[kQuery].shape[0];
    args.rows = in[kSlots].shape[0];
    args.heads = in[kQuery].shape[1];
    args.dim = in[kQuery].shape[2];
    args.slot_count = in[kRing].shape[0];
    args.entries = in[kRing].shape[2];
    const std::string fault = find_fault(args);
    if (!fault.empty()) throw std::invalid_argument(fault);
    args.ring = static_cast<float*>(updated<4>(api, context, 0, in[kRing], sizeof(float)));
    hold_queries(args);
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
