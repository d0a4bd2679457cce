#include "cpu/rows/greedy_sample.h"

#include <cmath>

#include "cpu/rows/argmax.h"
#include "cpu/threads/rows.h"

namespace ew {

void greedy_sample(const float* logits, std::int64_t rows, std::int64_t vocab, std::int64_t* tokens,
                   const Parallel& parallel) {
  const auto argmax = argmax_kernel();
  auto run = [&](std::size_t i) {
    float largest;
    argmax(logits + static_cast<std::int64_t>(i) * vocab, vocab, tokens + i, &largest);
    if (!std::isfinite(largest)) tokens[i] = -1;
  };
  for_each(parallel, rows * vocab > kWorthwhileElements, static_cast<std::size_t>(rows), run);
}

}  // namespace ew
