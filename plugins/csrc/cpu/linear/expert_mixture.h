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
  return {2 * a.inner, a.columns, a.up_bits, a.up_block, a.up_scale_bits, a.up_minima,
          a.inner,     a.exact,   0,         0.0f,       a.gate};
}
inline declared::block_linear::AttributeValues down_attributes(const declared::expert_mixture::AttributeValues& a) {
  return {a.columns, a.inner, a.down_bits, a.down_block, a.down_scale_bits, a.down_minima, a.columns, a.exact, 0,
          0.0f,      0};
}

// The first id that names no expert, in words; empty when all do.
std::string find_fault(const ExpertMixtureArgs& args);

// A whole call, divided among the host's threads. No token's result depends on the others, or on the threads.
// Throws std::bad_alloc.
void expert_mixture(const ExpertMixtureArgs& args, const Parallel& parallel);

}  // namespace ew
