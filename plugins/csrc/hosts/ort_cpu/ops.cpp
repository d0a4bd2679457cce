// The ops of libenginewright_ort, which run on the CPU.
#include "hosts/ort_cpu/declaration.h"

namespace ew::ort {

const DeclaredOp& paged_attention_op();
const DeclaredOp& kvarn_attention_op();
const DeclaredOp& split_qkv_op();
const DeclaredOp& depth_mix_op();
const DeclaredOp& greedy_sample_op();
const DeclaredOp& clp_emit_op();

const DeclaredOp* const* ops() {
  static const DeclaredOp* const all[] = {
      &paged_attention_op(), &kvarn_attention_op(), &split_qkv_op(), &depth_mix_op(),
      &greedy_sample_op(),   &clp_emit_op(),        nullptr};
  return all;
}

}  // namespace ew::ort
