// PagedAttention for ONNX Runtime on the CPU: turns a node's tensors and attributes into AttentionArgs.
#include <string>

#include "cpu/attention/paged_attention.h"
#include "hosts/ort_cpu/attention_arguments.h"
#include "hosts/ort_cpu/declaration.h"
#include "ops/paged_attention.h"

namespace ew::ort {
namespace {

using namespace paged;

// The CPU takes float32 only.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    AttentionArgs args{};
    set_attention(args, attributes, attention_tensors(in.data()), in[kTiles]);
    args.kv_bits = static_cast<int>(attributes.kv_bits);
    const std::string fault = find_fault(args);
    if (!fault.empty()) throw std::invalid_argument(fault);
    args.output = static_cast<float*>(output(api, context, 0, {args.tokens, args.query_heads, args.value_dim}).data);
    // with two buffers the op is functional, at the price of a copy of the pool
    args.tiles = static_cast<unsigned char*>(updated<2>(api, context, 1, in[kTiles], 1));
    paged_attention(args, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
