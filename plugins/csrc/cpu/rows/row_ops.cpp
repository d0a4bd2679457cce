#include "cpu/rows/row_ops.h"

#include <algorithm>
#include <cmath>

#include "cpu/simd/isa.h"

namespace ew {
namespace {

constexpr std::int64_t kWorthwhile = 1 << 17;  // elements: about the price of waking a thread
constexpr std::int64_t kTaskTokens = 16;

// Call body(begin, end) for runs of tokens, on the host's threads where `elements` of work are worth it.
template <class Body>
void for_tokens(const Parallel& parallel, std::int64_t tokens, std::int64_t elements, Body body) {
  auto run = [&](std::size_t i) {
    const std::int64_t begin = static_cast<std::int64_t>(i) * kTaskTokens;
    body(begin, std::min(begin + kTaskTokens, tokens));
  };
  const std::int64_t tasks = (tokens + kTaskTokens - 1) / kTaskTokens;
  for_each(parallel, elements > kWorthwhile, static_cast<std::size_t>(tasks), run);
}

}  // namespace

void split_qkv(const SplitQkvArgs& args, const Parallel& parallel) {
  const Kernels& kernels = ew::kernels();
  for_tokens(parallel, args.tokens, args.tokens * args.width(),
             [&](std::int64_t begin, std::int64_t end) { kernels.split_qkv(args, begin, end); });
}

void depth_mix(const DepthMixArgs& args, const Parallel& parallel) {
  const Kernels& kernels = ew::kernels();
  const std::int64_t read =
      args.query_heads * args.head_dim + (args.source_count + 1) * args.kv_heads * (args.head_dim + args.value_dim);
  for_tokens(parallel, args.tokens, args.tokens * read,
             [&](std::int64_t begin, std::int64_t end) { kernels.depth_mix(args, begin, end); });
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
