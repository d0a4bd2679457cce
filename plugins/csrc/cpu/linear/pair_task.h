// The rows of a product with two panels, tile by tile.
#pragma once

#include <cstdint>

#include "cpu/linear/block_linear.h"
#include "cpu/linear/chunk_codes.h"
#include "cpu/linear/finish_rows.h"

namespace ew {
namespace {

constexpr int kTilePanels = kWidth == 16 ? 2 : 1;  // registers decide whether two panels share a row

// A task with what all its tiles read.
struct PairTask {
  const BlockLinearArgs& args;
  const BlockTask& task;
  PanelShape shape;
  PanelPair pair;

  PairTask(const BlockLinearArgs& args, const BlockTask& task)
      : args(args), task(task), shape(args.shape()), pair(PanelPair::of(args, task.pair)) {}

  // Bytes ahead of what a tile reads first. A row alone reads weights as fast as memory gives them, in their order;
  // with more rows the next pair comes while this one is multiplied.
  std::int64_t ahead(bool is_first, int rows) const {
    if (!is_first) return 0;
    return rows == 1 && task.count == 1 ? 4096 : (args.gate ? 1 : 2) * shape.panel_bytes();
  }

  bool has_second() const { return pair.second < shape.panels(); }

  // The tile's panels from the pair's first or second on; the first stands for a second that there is not, whose sums
  // nobody reads.
  template <int kPanels>
  Panels<kPanels> from(int panel) const {
    Panels<kPanels> found;
    for (int p = 0; p < kPanels; ++p) {
      found.at[p] = args.panels + (panel + p && has_second() ? pair.second : pair.first) * shape.panel_bytes();
      found.factors[p] = found.at[p] + shape.groups_bytes();
    }
    return found;
  }
};

// Tiles of kRows rows and kPanels panels, as long as there are as many rows.
template <class Tile, int kRows, int kPanels = kTilePanels>
void some_rows(const PairTask& pair, std::int64_t& done) {
  for (; done + kRows <= pair.task.count; done += kRows) {
    alignas(64) float sums[kRows * kPairRows];
    for (int r = 0; r < kRows; ++r) prefetch_result(pair.args, pair.task.begin + done + r, pair.pair);
    const Tile tile{pair.shape, *pair.task.rows, pair.task.begin + done, pair.ahead(done == 0, kRows)};
    for (int panel = 0; panel < (pair.has_second() ? 2 : 1); panel += kPanels)
      tile.run(pair.from<kPanels>(panel), sums + panel * kPanelRows, kPairRows);
    for (int r = 0; r < kRows; ++r) {
      RowBest* best = pair.task.best ? pair.task.best + done + r : nullptr;
      finish_row(pair.args, tile.row + r, pair.pair, sums + r * kPairRows, best);
    }
  }
}

}  // namespace
}  // namespace ew
