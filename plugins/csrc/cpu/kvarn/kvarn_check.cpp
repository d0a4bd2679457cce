// Checks for the faults of a call that would make it read or write outside a buffer, or let two rows write one tile.
#include <algorithm>
#include <vector>

#include "cpu/attention/attention_plan.h"
#include "cpu/kvarn/kvarn_attention.h"
#include "cpu/threads/fault.h"

namespace ew {
namespace {

std::string encoded_at(const char* when, std::int64_t row, std::int64_t head) {
  return "encoded_lens[" + std::string(when) + ", layer, " + std::to_string(row) + ", " + std::to_string(head) + "]";
}

std::string check_lens(const KVarNArgs& args, std::int64_t row, std::int64_t head) {
  const std::int64_t held = args.held(row, head), total = held + args.starts[row + 1] - args.starts[row];
  const std::int64_t before = args.before(row, head), after = args.after(row, head);
  if (held < 0) return expected(at("kv_lens", row, head), held, "0 or more");
  const std::string multiple = "a multiple of " + std::to_string(kTileTokens) + ", 0 or more";
  if (before < 0 || before % kTileTokens != 0) return expected(encoded_at("0", row, head), before, multiple);
  if (after < 0 || after % kTileTokens != 0) return expected(encoded_at("1", row, head), after, multiple);
  if (before > held)
    return expected(encoded_at("0", row, head), before, "at most the " + std::to_string(held) + " tokens held");
  if (after < before)
    return expected(encoded_at("1", row, head), after, "at least " + std::to_string(before) + ", as before the call");
  if (after > total)
    return expected(encoded_at("1", row, head), after, "at most the " + std::to_string(total) + " tokens then held");
  const std::int64_t ring = (args.exact_tiles - 1) * kTileTokens, sink = kTileTokens;
  const std::string room =
      " of them: F = " + std::to_string(args.exact_tiles) + " has room for " + std::to_string(ring) + " newest tokens";
  if (held > std::max(before, sink) + ring)
    return expected(at("kv_lens", row, head), held,
                    "at most " + std::to_string(ring) + " beyond the " + std::to_string(std::max(before, sink)) + room);
  if (total > std::max(after, sink) + ring)
    return expected(encoded_at("1", row, head), after, "more of " + std::to_string(total) + room);
  if (after > args.table_width * kTileTokens)
    return expected(encoded_at("1", row, head), after,
                    "at most M = " + std::to_string(args.table_width) + " tiles of " + std::to_string(kTileTokens));
  return {};
}

// The records that the call reads, then those it writes.
std::string check_records(const KVarNArgs& args, std::int64_t row, std::int64_t head) {
  const std::int64_t count = args.starts[row + 1] - args.starts[row];
  const std::int64_t seen = std::max<std::int64_t>(1, visible_tiles(args, row, head, 0, count).begin);
  const std::int64_t open = args.open_begin(row, head);
  for (std::int64_t tile = std::min(seen, open); tile < args.encode_end(row, head); ++tile) {
    const std::int64_t id = args.tile_ids(row, head)[tile];
    if (id < 0 || id >= args.tile_count)
      return expected(at("tile_table", row, head) + "[" + std::to_string(tile) + "]", id,
                      "a record id in [0, " + std::to_string(args.tile_count) + ")");
  }
  return {};
}

// Records have one writer: two threads at one would leave a mixture.
std::string check_writers(const KVarNArgs& args) {
  std::vector<std::int32_t> ids;
  for (std::int64_t row = 0; row < args.rows; ++row)
    for (std::int64_t head = 0; head < args.kv_heads && args.starts[row + 1] > args.starts[row]; ++head)
      for (std::int64_t tile = args.open_begin(row, head); tile < args.encode_end(row, head); ++tile)
        ids.push_back(args.tile_ids(row, head)[tile]);
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  return twice == ids.end() ? "" : expected("tile_table", *twice, "a record that the call encodes once only");
}

}  // namespace

std::string find_fault(const KVarNArgs& args) {
  std::string fault = check_starts(args.starts, args.rows, args.tokens);
  std::vector<bool> taken(static_cast<std::size_t>(args.slot_count));
  for (std::int64_t row = 0; row < args.rows && fault.empty(); ++row) {
    if (args.starts[row + 1] == args.starts[row]) continue;
    const std::int64_t slot = args.slots[row];
    if (slot < 0 || slot >= args.slot_count)
      return expected(index_of("slots", row), slot, "a slot in [0, " + std::to_string(args.slot_count) + ")");
    if (taken[static_cast<std::size_t>(slot)])
      return expected(index_of("slots", row), slot, "a slot that no other row has");
    taken[static_cast<std::size_t>(slot)] = true;
    for (std::int64_t head = 0; head < args.kv_heads && fault.empty(); ++head) {
      fault = check_lens(args, row, head);
      if (fault.empty()) fault = check_records(args, row, head);
    }
  }
  return fault.empty() ? check_writers(args) : fault;
}

}  // namespace ew
