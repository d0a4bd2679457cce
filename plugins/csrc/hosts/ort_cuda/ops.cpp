// The ops of libenginewright_cuda for ONNX Runtime, each for half and for bfloat16 graphs.
#include "hosts/ort_cpu/declaration.h"

namespace ew::ort {

const DeclaredOp& paged_attention_op(ElementType type);
const DeclaredOp& kvarn_attention_op(ElementType type);
const DeclaredOp& depth_mix_op(ElementType type);
const DeclaredOp& split_qkv_op(ElementType type);
const DeclaredOp& clp_emit_op(ElementType type);
const DeclaredOp& greedy_sample_op();

const DeclaredOp* const* ops() {
  static const DeclaredOp* const all[] = {&paged_attention_op(kFloat16), &paged_attention_op(kBfloat16),
                                          &kvarn_attention_op(kFloat16), &kvarn_attention_op(kBfloat16),
                                          &split_qkv_op(kFloat16),       &split_qkv_op(kBfloat16),
                                          &depth_mix_op(kFloat16),       &depth_mix_op(kBfloat16),
                                          &clp_emit_op(kFloat16),        &clp_emit_op(kBfloat16),
                                          &greedy_sample_op(),           nullptr};
  return all;
}

}  // namespace ew::ort
