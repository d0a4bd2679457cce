// GreedySample on the CPU.
#pragma once

#include <cstdint>

#include "cpu/threads/parallel.h"

namespace ew {

// tokens[r]: index of the largest of logits[r, 0 .. vocab), the lowest among equals; -1 where it is not finite.
void greedy_sample(const float* logits, std::int64_t rows, std::int64_t vocab, std::int64_t* tokens,
                   const Parallel& parallel);

}  // namespace ew
