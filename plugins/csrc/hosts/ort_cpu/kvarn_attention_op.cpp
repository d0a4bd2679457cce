// KVarNAttention for ONNX Runtime on the CPU: turns a node's tensors and attributes into KVarNArgs.
#include <string>

#include "cpu/kvarn/kvarn_attention.h"
#include "hosts/ort_cpu/attention_arguments.h"
#include "hosts/ort_cpu/declaration.h"
#include "ops/kvarn_attention.h"

namespace ew::ort {
namespace {

using namespace kvarn;

KVarNArgs arguments(const Attributes& attributes, const Tensor* in) {
  const AttentionTensors shared = attention_tensors(in);
  KVarNArgs args{};
  set_attention(args, attributes, shared, in[kTiles]);
  args.kv_bits = 16;
  args.attributes = attributes;
  args.slots = data<std::int32_t>(in[kSlots]);
  args.slot_count = in[kExact].shape[0];
  args.exact_tiles = in[kExact].shape[2];
  args.encoded_before = data<std::int32_t>(in[kEncodedLens]) + attributes.layer * shared.lens();
  args.encoded_after = args.encoded_before + in[kKvLens].shape[0] * shared.lens();
  return args;
}

// The CPU takes float32 only.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    KVarNArgs args = arguments(attributes, in.data());
    const std::string fault = find_fault(args);
    if (!fault.empty()) throw std::invalid_argument(fault);
    args.output = static_cast<float*>(output(api, context, 0, {args.tokens, args.query_heads, args.head_dim}).data);
    args.tiles = static_cast<unsigned char*>(updated<2>(api, context, 1, in[kTiles], 1));
    args.exact = static_cast<Half*>(updated<4>(api, context, 2, in[kExact], sizeof(Half)));
    kvarn_attention(args, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
