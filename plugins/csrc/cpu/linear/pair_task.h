// The rows of a product with two panels, tile by tile.
#pragma once

#include <algorithm>
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
  std::int64_t panels;  // 1 or 2

  PairTask(const BlockLinearArgs& args, const BlockTask& task)
      : args(args), task(task), shape(args.shape()), panels(std::min<std::int64_t>(shape.panels() - task.panel, 2)) {}

  // The tile's panels; the last one of the matrix stands for one that there is not, whose sums nobody reads.
  template <int kPanels>
  Panels<kPanels> from(std::int64_t panel) const {
    Panels<kPanels> found;
    for (int p = 0; p < kPanels; ++p) {
      const std::int64_t there = std::min<std::int64_t>(panel + p, panels - 1);
      found.at[p] = args.panels + (task.panel + there) * shape.panel_bytes();
    }
    return found;
  }
};

// Tiles of kRows rows and kPanels panels, as long as there are as many rows.
template <class Tile, int kRows, int kPanels = kTilePanels>
void some_rows(const PairTask& pair, std::int64_t& done) {
  for (; done + kRows <= pair.task.count; done += kRows) {
    alignas(64) float sums[kRows * kPairRows];
    const Tile tile{pair.shape, *pair.task.rows, pair.task.begin + done};
    for (std::int64_t panel = 0; panel < pair.panels; panel += kPanels)
      tile.run(pair.from<kPanels>(panel), sums + panel * kPanelRows, kPairRows);
    for (int r = 0; r < kRows; ++r)
      finish_row(pair.args, tile.row + r, pair.task.panel * kPanelRows, sums + r * kPairRows);
  }
}

}  // namespace
}  // namespace ew
