#include "cpu/linear/block_linear.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ew {
namespace {

constexpr RowBest kNone{-std::numeric_limits<float>::infinity(), 0};

// The index of a row's largest result, of the largest of each run; runs follow one another `stride` apart.
std::int64_t choose(const RowBest* best, std::int64_t runs, std::int64_t stride) {
  RowBest found = kNone;
  for (std::int64_t run = 0; run < runs; ++run) {
    const RowBest& one = best[run * stride];
    if (one.index < 0) return -1;
    if (one.value > found.value) found = one;
  }
  return std::isfinite(found.value) ? found.index : -1;
}

}  // namespace

// bfloat16 is multiplied in pairs where the CPU does that, and widened on all others.
Activations activations_of(const BlockLinearArgs& args) {
  if (args.exact) return Activations::kNumbers;
  if (args.bits != kNumberBits) return Activations::kCodes;
  return isa() == Isa::kAvx512Bf16 ? Activations::kPairs : Activations::kNumbers;
}

decltype(block_linear_kernel()) product_kernel(const BlockLinearArgs& args) {
  return args.bits == kNumberBits ? bfloat16_linear_kernel() : block_linear_kernel();
}

void block_linear(const BlockLinearArgs& args, BlockLinearScratch& scratch, const Parallel& parallel) {
  if (args.tokens == 0) return;
  const PanelShape shape = args.shape();
  const PreparedRows rows = PreparedRows::reserve(scratch.rows, shape, args.tokens, activations_of(args));
  const auto prepare_row = prepare_row_kernel();
  auto prepare = [&](std::size_t token) { prepare_row(args, rows, static_cast<std::int64_t>(token)); };
  for_each(parallel, args.tokens * args.columns > kWorthwhile, static_cast<std::size_t>(args.tokens), prepare);

  const std::int64_t most_rows = most_task_rows(rows.row_bytes());
  const std::int64_t parts = (args.tokens + most_rows - 1) / most_rows;
  const std::int64_t step = (args.tokens + parts - 1) / parts;
  const std::int64_t pairs = PanelPair::pairs(args);
  const std::int64_t runs = std::min(pairs, std::max<std::int64_t>(kTasks / parts, 1));  // of pairs that follow
  const auto product = product_kernel(args);
  if (args.chosen) scratch.best.assign(static_cast<std::size_t>(runs * args.tokens), kNone);
  auto run = [&](std::size_t task) {
    const std::int64_t part = static_cast<std::int64_t>(task) / runs, at = static_cast<std::int64_t>(task) % runs;
    const std::int64_t begin = part * step, count = std::min(step, args.tokens - begin);
    RowBest* best = args.chosen ? scratch.best.data() + at * args.tokens + begin : nullptr;
    for (std::int64_t pair = pairs * at / runs; pair < pairs * (at + 1) / runs; ++pair)
      product(args, {&rows, begin, count, pair, best});
  };
  const bool worthwhile = args.tokens * args.columns * args.rows > kWorthwhile;
  for_each(parallel, worthwhile, static_cast<std::size_t>(parts * runs), run);
  for (std::int64_t token = 0; args.chosen && token < args.tokens; ++token)
    args.chosen[token] = choose(scratch.best.data() + token, runs, args.tokens);
}

}  // namespace ew
