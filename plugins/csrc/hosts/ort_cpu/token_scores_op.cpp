// TokenScores for ONNX Runtime on the CPU: turns a node's tensors and attributes into TokenScoresArgs.
#include "cpu/policy/token_scores.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/stored_arguments.h"
#include "ops/token_scores.h"

namespace ew::ort {
namespace {

using namespace scores;

// The CPU takes float32 only.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    TokenScoresArgs args{attributes};
    args.ring = data<float>(in[kRing]);
    args.stored = stored_keys(attributes, stored_tokens(in.data()), in[kRing].shape[3]);
    args.slots = data<std::int32_t>(in[kSlots]);
    args.last_positions = data<std::int64_t>(in[kLastPositions]);
    args.sinks = data<float>(in[kSinks]);
    if (attributes.k_bits > 0) {
      args.exact = data<Half>(in[kExact]);
      args.encoded = layer_encoded(attributes, in.data());
      args.exact_tiles = in[kExact].shape[2];
    }
    args.query_heads = in[kRing].shape[1];
    args.slot_count = in[kRing].shape[0];
    args.entries = in[kRing].shape[2];
    const std::string fault = find_fault(args);
    if (!fault.empty()) throw std::invalid_argument(fault);
    const std::int64_t rows = args.stored.rows, width = args.padded();
    args.importance = static_cast<float*>(output(api, context, 0, {rows, args.kv_heads, width}).data);
    void* similar = output(api, context, 1, {rows, args.kv_heads, width * args.redundancy}).data;
    args.similar = args.redundancy == 1 ? static_cast<float*>(similar) : nullptr;
    token_scores(args, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
