// AddLora for ONNX Runtime on the CPU: turns a node's tensors and attributes into AddLoraArgs.
#include <vector>

#include "cpu/lora/add_lora.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/add_lora.h"

namespace ew::ort {
namespace {

using namespace add_lora_op;

// The CPU takes float32 only.
struct Kernel : NodeKernel<Attributes> {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  static constexpr InPlace in_place{kBase, 0};
  using NodeKernel::NodeKernel;
  mutable Pool<LoraScratch> pool;

  void compute(KernelContext* context) const {
    const std::size_t count = input_count(api, context);
    std::vector<Tensor> in(count);
    for (std::size_t i = 0; i < count; ++i) in[i] = input(api, context, i);
    expect_shapes(attributes, in.data(), count);
    AddLoraArgs args{attributes};
    args.base = static_cast<const float*>(in[kBase].data);
    args.x = static_cast<const float*>(in[kX].data);
    args.index = static_cast<const std::int32_t*>(in[kIndex].data);
    args.scale = static_cast<const float*>(in[kScale].data);
    args.tokens = in[kBase].shape[1];
    args.outputs = in[kBase].shape[2];
    args.size = in[kX].shape[2];
    args.capacity = in[kFactors].shape[0];
    args.layers = in[kFactors].shape[1];
    args.rank = in[kFactors].shape[2];
    std::int64_t begin = 0;
    for (std::size_t i = kFactors; i < count; i += 2) {
      const std::int64_t outputs = in[i + 1].shape[3];
      args.segments.push_back(
          {static_cast<const Half*>(in[i].data), static_cast<const Half*>(in[i + 1].data), begin, outputs});
      begin += outputs;
    }
    args.sum = static_cast<float*>(output(api, context, 0, {1, args.tokens, args.outputs}).data);
    Pool<LoraScratch>::Loan scratch(pool);
    add_lora(args, *scratch, HostThreads(api, context));
  }
};

EW_REGISTER_OP(Kernel);

}  // namespace
}  // namespace ew::ort
