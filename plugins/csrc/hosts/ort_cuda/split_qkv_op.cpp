// SplitQkv for ONNX Runtime's CUDA provider.
#include "hosts/ort_cuda/device_call.h"
#include "ops/split_qkv_call.h"

namespace ew::ort {
namespace {

using namespace split;

template <ElementType kType>
struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  const Api& api;
  Attributes attributes;
  DeviceMemory memory;

  Kernel(const Api& host, const KernelInfo* info)
      : api(host), attributes(NodeAttributes(host, info)), memory(host, info) {}

  void compute(KernelContext* context) const {
    Tensor in[kInputCount];
    for (int i = 0; i < kInputCount; ++i) in[i] = input(api, context, static_cast<std::size_t>(i));
    expect_shapes(attributes, in);
    EwSplitQkv call = call_of(attributes, in, kCallType<kType>);
    call.query = output(api, context, 0, {call.tokens, call.query_heads, call.head_dim}).data;
    call.key = output(api, context, 1, {call.tokens, call.kv_heads, call.head_dim}).data;
    call.value = output(api, context, 2, {call.tokens, call.kv_heads, call.value_dim}).data;
    start(api, context, memory, call, ew_cuda_split_qkv_workspace, ew_cuda_split_qkv);
  }
};

}  // namespace

const DeclaredOp& split_qkv_op(ElementType type) { return op_of<Kernel>(type); }

}  // namespace ew::ort
