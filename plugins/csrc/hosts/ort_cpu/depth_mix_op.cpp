// DepthMix for ONNX Runtime on the CPU: turns a node's tensors and attributes into DepthMixArgs.
#include <vector>

#include "cpu/rows/depth_mix.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/depth_mix.h"

namespace ew::ort {
namespace {

using namespace depth;

// The CPU takes float32 only.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  using NodeKernel::NodeKernel;

  void compute(KernelContext* context) const {
    const std::size_t count = input_count(api, context);
    std::vector<Tensor> in(count);
    for (std::size_t i = 0; i < count; ++i) in[i] = input(api, context, i);
    expect_shapes(in.data(), count);
    std::vector<const float*> data;
    for (const Tensor& tensor : in) data.push_back(static_cast<const float*>(tensor.data));
    DepthMixArgs args{attributes};
    args.query = data[kQuery];
    args.key = data[kKey];
    args.value = data[kValue];
    args.sources = data.data() + kSources;
    args.tokens = in[kQuery].shape[0];
    args.query_heads = in[kQuery].shape[1];
    args.kv_heads = in[kKey].shape[1];
    args.head_dim = in[kQuery].shape[2];
    args.value_dim = in[kValue].shape[2];
    args.source_count = static_cast<std::int64_t>(count - kSources) / 2;
    args.mixed = static_cast<float*>(output(api, context, 0, {args.tokens, args.kv_heads, args.value_dim}).data);
    depth_mix(args, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
