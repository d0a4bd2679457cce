// ExpertMixture on the CPU: BlockLinear's kernels over the rows of each expert.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/linear/block_linear.h"
#include "cpu/threads/parallel.h"
#include "generated/attributes/expert_mixture.h"

namespace ew {

// One call of ExpertMixture: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct ExpertMixtureArgs : declared::expert_mixture::AttributeValues {
  const float* x = nullptr;
  const std::int64_t* ids = nullptr;
  const float* weights = nullptr;
  const unsigned char* up = nullptr;
  const unsigned char* down = nullptr;
  const float* up_bias = nullptr;    // may be null
  const float* down_bias = nullptr;  // may be null
  float* out = nullptr;
  std::int64_t tokens = 0, chosen = 0, experts = 0;  // chosen: of each token
};

// A product with an expert's matrix `up`, and with its matrix `down`, as nodes of BlockLinear have them.
inline declared::block_linear::AttributeValues up_attributes(const declared::expert_mixture::AttributeValues& a) {
  declared::block_linear::AttributeValues up{};
  up.rows = 2 * a.inner, up.columns = a.columns, up.width = a.inner;
  up.bits = a.up_bits, up.block = a.up_block, up.scale_bits = a.up_scale_bits, up.minima = a.up_minima;
  up.gate = a.gate, up.exact = a.exact;
  return up;
}
inline declared::block_linear::AttributeValues down_attributes(const declared::expert_mixture::AttributeValues& a) {
  declared::block_linear::AttributeValues down{};
  down.rows = a.columns, down.columns = a.inner, down.width = a.columns;
  down.bits = a.down_bits, down.block = a.down_block, down.scale_bits = a.down_scale_bits, down.minima = a.down_minima;
  down.exact = a.exact;
  return down;
}

// The first id that names no expert, in words; empty when all do.
std::string find_fault(const ExpertMixtureArgs& args);

// A whole call, divided among the host's threads. No token's result depends on the others, or on the threads.
// Throws std::bad_alloc.
void expert_mixture(const ExpertMixtureArgs& args, const Parallel& parallel);

}  // namespace ew
