// Checks for the faults of a call that would make it read or write outside a buffer.
#include <string>

#include "cpu/attention/attention_plan.h"
#include "cpu/attention/paged_attention.h"
#include "cpu/threads/fault.h"

namespace ew {
namespace {

std::string check_head(const AttentionArgs& args, std::int64_t row, std::int64_t head) {
  const std::int64_t held = args.held(row, head), count = args.starts[row + 1] - args.starts[row];
  if (held < 0) return expected(at("kv_lens", row, head), held, "0 or more");
  if (held + count > args.table_width * kTileTokens)
    return expected(at("kv_lens", row, head), held,
                    "room for " + std::to_string(count) + " new tokens in M = " + std::to_string(args.table_width) +
                        " tiles of " + std::to_string(kTileTokens));
  const TileRange tiles = visible_tiles(args, row, head, 0, count);
  for (std::int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const std::int64_t id = args.tile_ids(row, head)[tile];
    if (id < 0 || id >= args.tile_count)
      return expected(at("tile_table", row, head) + "[" + std::to_string(tile) + "]", id,
                      "a tile id in [0, " + std::to_string(args.tile_count) + ")");
  }
  return {};
}

}  // namespace

std::string find_fault(const AttentionArgs& args) {
  std::string fault = check_starts(args.starts, args.rows, args.tokens);
  for (std::int64_t row = 0; row < args.rows && fault.empty(); ++row) {
    if (args.starts[row + 1] == args.starts[row]) continue;
    for (std::int64_t head = 0; head < args.kv_heads && fault.empty(); ++head) fault = check_head(args, row, head);
  }
  return fault;
}

}  // namespace ew
