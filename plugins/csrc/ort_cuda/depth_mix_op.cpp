// DepthMix for ONNX Runtime's CUDA provider.
#include <vector>

#include "../ort/depth_mix_signature.h"
#include "device_call.h"

namespace ew::ort {
namespace {

using namespace depth;

template <ElementType kType>
struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  const Api& api;
  float scale;
  DeviceMemory memory;

  Kernel(const Api& host, const KernelInfo* info) : api(host), scale(read_scale(host, info)), memory(host, info) {}

  void compute(KernelContext* context) const {
    const std::size_t count = input_count(api, context);
    std::vector<Tensor> in(count);
    for (std::size_t i = 0; i < count; ++i) in[i] = input(api, context, i);
    expect_shapes(in.data(), count);
    std::vector<const void*> sources;
    for (std::size_t i = kSources; i < count; ++i) sources.push_back(in[i].data);
    EwDepthMix call{};
    call.query = in[kQuery].data;
    call.key = in[kKey].data;
    call.value = in[kValue].data;
    call.sources = sources.data();
    call.tokens = in[kQuery].shape[0];
    call.query_heads = in[kQuery].shape[1];
    call.kv_heads = in[kKey].shape[1];
    call.head_dim = in[kQuery].shape[2];
    call.value_dim = in[kValue].shape[2];
    call.source_count = static_cast<std::int64_t>(sources.size()) / 2;
    call.scale = scale;
    call.type = kCallType<kType>;
    call.mixed = output(api, context, 0, {call.tokens, call.kv_heads, call.value_dim}).data;
    start(api, context, memory, call, ew_cuda_depth_mix_workspace, ew_cuda_depth_mix);
  }
};

}  // namespace

const DeclaredOp& depth_mix_op(ElementType type) { return op_of<Kernel>(type); }

}  // namespace ew::ort
