// The ops that treat each token or row by itself, divided among the host's threads.
#pragma once

#include "cpu/simd/kernel_table.h"
#include "cpu/threads/parallel.h"

namespace ew {

void split_qkv(const SplitQkvArgs& args, const Parallel& parallel);

void depth_mix(const DepthMixArgs& args, const Parallel& parallel);

// tokens[r]: index of the largest of logits[r, 0 .. vocab), the lowest among equals; -1 where it is not finite.
void greedy_sample(const float* logits, std::int64_t rows, std::int64_t vocab, std::int64_t* tokens,
                   const Parallel& parallel);

}  // namespace ew
