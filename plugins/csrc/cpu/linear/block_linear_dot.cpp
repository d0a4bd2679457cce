// The kernels of BlockLinear, compiled once for each instruction set that multiplies bytes.
#include "cpu/simd/simd.h"
// the headers below need Vec
#include "cpu/linear/block_linear.h"
#include "cpu/linear/code_tile.h"
#include "cpu/linear/number_tile.h"
#include "cpu/linear/pair_task.h"
#include "cpu/linear/prepare_row.h"

namespace ew {
namespace {

// Registers decide how many rows share a panel's codes.
constexpr int kMostRows = kWidth == 16 ? 6 : kWidth == 8 ? 4 : 1;

template <int kBits, Offsets kOffsets>
void code_rows(const PairTask& pair) {
  std::int64_t done = 0;
  constexpr bool kMany = kMostRows >= 4, kAll = kMany && kOffsets != Offsets::kHalves;  // fewer versions of a rare form
  if constexpr (kAll) some_rows<CodeTile<kBits, kMostRows, kTilePanels, kOffsets>, kMostRows>(pair, done);
  if constexpr (kMany && !(kAll && kMostRows == 4)) some_rows<CodeTile<kBits, 4, kTilePanels, kOffsets>, 4>(pair, done);
  if constexpr (kAll) some_rows<CodeTile<kBits, 2, kTilePanels, kOffsets>, 2>(pair, done);
  some_rows<CodeTile<kBits, 1, kTilePanels, kOffsets>, 1>(pair, done);
}

void number_rows(const PairTask& pair) {
  std::int64_t done = 0;
  if constexpr (kWidth == 16) some_rows<NumberTile<12, kTilePanels>, 12>(pair, done);
  if constexpr (kWidth > 4) some_rows<NumberTile<4, kTilePanels>, 4>(pair, done);
  some_rows<NumberTile<1, kTilePanels>, 1>(pair, done);
}

template <int kBits>
void all_rows(const PairTask& pair) {
  switch (offsets_of(pair.shape)) {
    case Offsets::kZero:
      return code_rows<kBits, Offsets::kZero>(pair);
    case Offsets::kMinima:
      return code_rows<kBits, Offsets::kMinima>(pair);
    case Offsets::kHalves:
      return code_rows<kBits, Offsets::kHalves>(pair);
  }
}

void block_linear_pair(const BlockLinearArgs& args, const BlockTask& task) {
  const PairTask pair(args, task);
  if (args.exact) return number_rows(pair);
  with_bits(pair.shape.bits, [&](auto known) { all_rows<known>(pair); });
}

}  // namespace

EW_DEFINE_CPU_KERNEL(prepare_row_kernel, prepare_row);
EW_DEFINE_CPU_KERNEL(block_linear_kernel, block_linear_pair);

}  // namespace ew
