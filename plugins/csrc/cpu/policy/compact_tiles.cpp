#include "cpu/policy/compact_tiles.h"

#include <algorithm>
#include <vector>

#include "cpu/threads/fault.h"
#include "cpu/threads/rows.h"
#include "layout/tile.h"

namespace ew {
namespace {

constexpr std::int64_t kMovesOfATask = 4 * kTileTokens;  // mostly those of a few whole tiles

std::string place_of(std::int64_t move, int field) {
  return "moves[" + std::to_string(move) + ", " + std::to_string(field) + "]";
}

std::string check_move(const CompactTilesArgs& args, std::int64_t move) {
  const std::int32_t* fields = args.moves + 4 * move;
  for (int field = 0; field < 4; ++field) {
    const bool is_tile = field % 2 == 0;
    const std::int64_t end = is_tile ? args.tile_count : kTileTokens;
    if (fields[field] < 0 || fields[field] >= end)
      return expected(place_of(move, field), fields[field],
                      (is_tile ? "a tile id in [0, " : "a place in [0, ") + std::to_string(end) + ")");
  }
  return {};
}

}  // namespace

std::string find_fault(const CompactTilesArgs& args) {
  std::vector<bool> is_source(static_cast<std::size_t>(args.tile_count));
  for (std::int64_t move = 0; move < args.count; ++move) {
    const std::string fault = check_move(args, move);
    if (!fault.empty()) return fault;
    is_source[static_cast<std::size_t>(args.moves[4 * move])] = true;
  }
  for (std::int64_t move = 0; move < args.count; ++move)
    if (is_source[static_cast<std::size_t>(args.moves[4 * move + 2])])
      return expected(place_of(move, 2), args.moves[4 * move + 2], "a tile that no move takes from");
  return {};
}

void compact_tiles(const CompactTilesArgs& args, const Parallel& parallel) {
  const auto kernel = move_tokens_kernel();
  auto move = [&](std::size_t i) {
    const std::int64_t begin = static_cast<std::int64_t>(i) * kMovesOfATask;
    kernel(args, begin, std::min(begin + kMovesOfATask, args.count));
  };
  const bool is_worthwhile = args.count * (args.head_dim + args.value_dim) > kWorthwhileElements;
  for_each(parallel, is_worthwhile, static_cast<std::size_t>((args.count + kMovesOfATask - 1) / kMovesOfATask), move);
}

}  // namespace ew
