// SplitQkv for ONNX Runtime on the CPU: turns a node's tensors and attributes into SplitQkvArgs.
#include "cpu/rows/split_qkv.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/split_qkv.h"

namespace ew::ort {
namespace {

using namespace split;

// The CPU takes float32 only.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const auto in = inputs<kInputCount>(api, context);
    expect_shapes(attributes, in.data());
    SplitQkvArgs args{attributes};
    args.packed = static_cast<const float*>(in[kPacked].data);
    args.cos = static_cast<const float*>(in[kCos].data);
    args.sin = static_cast<const float*>(in[kSin].data);
    args.query_norm = static_cast<const float*>(in[kQueryNorm].data);
    args.key_norm = static_cast<const float*>(in[kKeyNorm].data);
    args.tokens = in[kPacked].shape[1];
    args.half = in[kCos].rank >= 0 ? in[kCos].shape[2] : 0;
    args.query = result(context, 0, args.tokens, args.query_heads, args.head_dim);
    args.key = result(context, 1, args.tokens, args.kv_heads, args.head_dim);
    args.value = result(context, 2, args.tokens, args.kv_heads, args.value_dim);
    split_qkv(args, HostThreads(api, context));
  }

  float* result(KernelContext* context, std::size_t index, std::int64_t tokens, std::int64_t heads,
                std::int64_t size) const {
    return static_cast<float*>(output(api, context, index, {tokens, heads, size}).data);
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
