#include "row_ops.h"

#include <algorithm>
#include <cmath>

#include "isa.h"

namespace ew {
namespace {

constexpr std::int64_t kWorthwhile = 1 << 17;  // elements: about the price of waking a thread
constexpr std::int64_t kTaskTokens = 16;

}  // namespace

void split_qkv(const SplitQkvArgs& args, const Parallel& parallel) {
  const Kernels& kernels = ew::kernels();
  auto run = [&](std::size_t i) {
    const std::int64_t begin = static_cast<std::int64_t>(i) * kTaskTokens;
    kernels.split_qkv(args, begin, std::min(begin + kTaskTokens, args.tokens));
  };
  const std::int64_t tasks = (args.tokens + kTaskTokens - 1) / kTaskTokens;
  for_each(parallel, args.tokens * args.width() > kWorthwhile, static_cast<std::size_t>(tasks), run);
}

void greedy_sample(const float* logits, std::int64_t rows, std::int64_t vocab, std::int64_t* tokens,
                   const Parallel& parallel) {
  const Kernels& kernels = ew::kernels();
  auto run = [&](std::size_t i) {
    float largest;
    kernels.argmax(logits + static_cast<std::int64_t>(i) * vocab, vocab, tokens + i, &largest);
    if (!std::isfinite(largest)) tokens[i] = -1;
  };
  for_each(parallel, rows * vocab > kWorthwhile, static_cast<std::size_t>(rows), run);
}

}  // namespace ew
