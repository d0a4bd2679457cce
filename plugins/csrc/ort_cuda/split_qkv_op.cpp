// SplitQkv for ONNX Runtime's CUDA provider.
#include "../ort/split_qkv_signature.h"
#include "device_call.h"

namespace ew::ort {
namespace {

using namespace split;

template <ElementType kType>
struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  const Api& api;
  Attributes attributes;
  DeviceMemory memory;

  Kernel(const Api& host, const KernelInfo* info) : api(host), attributes(host, info), memory(host, info) {}

  void compute(KernelContext* context) const {
    Tensor in[kInputCount];
    for (int i = 0; i < kInputCount; ++i) in[i] = input(api, context, static_cast<std::size_t>(i));
    expect_shapes(attributes, in);
    EwSplitQkv call{};
    call.packed = in[kPacked].data;
    call.cos = in[kCos].data;
    call.sin = in[kSin].data;
    call.query_norm = in[kQueryNorm].data;
    call.key_norm = in[kKeyNorm].data;
    call.tokens = in[kPacked].shape[1];
    call.query_heads = attributes.query_heads;
    call.kv_heads = attributes.kv_heads;
    call.head_dim = attributes.head_dim;
    call.value_dim = attributes.value_dim;
    call.half = in[kCos].rank >= 0 ? in[kCos].shape[2] : 0;
    call.epsilon = attributes.epsilon;
    call.type = kCallType<kType>;
    call.query = output(api, context, 0, {call.tokens, call.query_heads, call.head_dim}).data;
    call.key = output(api, context, 1, {call.tokens, call.kv_heads, call.head_dim}).data;
    call.value = output(api, context, 2, {call.tokens, call.kv_heads, call.value_dim}).data;
    start(api, context, memory, call, ew_cuda_split_qkv_workspace, ew_cuda_split_qkv);
  }
};

}  // namespace

const DeclaredOp& split_qkv_op(ElementType type) { return op_of<Kernel>(type); }

}  // namespace ew::ort
