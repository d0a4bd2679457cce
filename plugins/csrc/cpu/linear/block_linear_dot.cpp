// The kernels of BlockLinear, compiled once for each instruction set that multiplies bytes.
#include "cpu/simd/simd.h"
// the headers below need Vec
#include "cpu/linear/block_linear.h"
#include "cpu/linear/code_tile.h"
#include "cpu/linear/finish_rows.h"
#include "cpu/linear/number_tile.h"
#include "cpu/linear/prepare_row.h"

namespace ew {
namespace {

// Registers decide how many rows share a panel's codes, and whether two panels share a row's.
constexpr int kMostRows = kWidth == 16 ? 6 : kWidth == 8 ? 4 : 1;
constexpr int kTilePanels = kWidth == 16 ? 2 : 1;

// A task with what all its tiles read.
struct PairTask {
  const BlockLinearArgs& args;
  const BlockTask& task;
  PanelShape shape;
  PanelPair pair;

  // Bytes ahead of what a tile reads first. A row alone reads codes as fast as memory gives them, in their order; with
  // more rows the next pair comes while this one is multiplied.
  std::int64_t ahead(bool is_first, int rows) const {
    if (!is_first) return 0;
    return rows == 1 && task.count == 1 ? 4096 : (args.gate ? 1 : 2) * shape.panel_bytes();
  }

  bool has_second() const { return pair.second < shape.panels(); }

  // The tile's panels from the pair's first or second on; the first stands for a second that there is not, whose sums
  // nobody reads.
  Panels<kTilePanels> from(int panel) const {
    Panels<kTilePanels> found;
    for (int p = 0; p < kTilePanels; ++p) {
      found.at[p] = args.panels + (panel + p && has_second() ? pair.second : pair.first) * shape.panel_bytes();
      found.factors[p] = found.at[p] + shape.groups_bytes();
    }
    return found;
  }
};

// Tiles of kRows rows, as long as there are as many.
template <class Tile, int kRows>
void some_rows(const PairTask& pair, std::int64_t& done) {
  for (; done + kRows <= pair.task.count; done += kRows) {
    alignas(64) float sums[kRows * kPairRows];
    for (int r = 0; r < kRows; ++r) prefetch_result(pair.args, pair.task.begin + done + r, pair.pair);
    const Tile tile{pair.shape, *pair.task.rows, pair.task.begin + done, pair.ahead(done == 0, kRows)};
    for (int panel = 0; panel < (pair.has_second() ? 2 : 1); panel += kTilePanels)
      tile.run(pair.from(panel), sums + panel * kPanelRows, kPairRows);
    for (int r = 0; r < kRows; ++r) {
      RowBest* best = pair.task.best ? pair.task.best + done + r : nullptr;
      finish_row(pair.args, tile.row + r, pair.pair, sums + r * kPairRows, best);
    }
  }
}

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
  const PanelShape shape = args.shape();
  const PairTask pair{args, task, shape, PanelPair::of(args, task.pair)};
  if (args.exact) return number_rows(pair);
  with_bits(shape.bits, [&](auto known) { all_rows<known>(pair); });
}

}  // namespace

EW_DEFINE_CPU_KERNEL(prepare_row_kernel, prepare_row);
EW_DEFINE_CPU_KERNEL(block_linear_kernel, block_linear_pair);

}  // namespace ew
