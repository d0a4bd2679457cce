#include "cpu/policy/hold_queries.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/threads/fault.h"

namespace ew {
namespace {

std::string check_slot(const HoldQueriesArgs& args, std::int64_t row, std::vector<bool>& taken) {
  const std::int64_t slot = args.slots[row];
  if (slot < 0 || slot >= args.slot_count)
    return expected(index_of("slots", row), slot, "a slot in [0, " + std::to_string(args.slot_count) + ")");
  if (taken[static_cast<std::size_t>(slot)])
    return expected(index_of("slots", row), slot, "a slot that no other row has");
  taken[static_cast<std::size_t>(slot)] = true;
  return {};
}

}  // namespace

std::string find_fault(const HoldQueriesArgs& args) {
  std::string fault = check_starts(args.starts, args.rows, args.tokens);
  std::vector<bool> taken(static_cast<std::size_t>(args.slot_count));
  for (std::int64_t row = 0; row < args.rows && fault.empty(); ++row)
    if (args.starts[row + 1] > args.starts[row]) fault = check_slot(args, row, taken);
  for (std::int64_t token = 0; token < args.tokens && fault.empty(); ++token)
    if (args.positions[token] < 0)
      fault = expected(index_of("position_ids", token), args.positions[token], "0 or more");
  return fault;
}

void hold_queries(const HoldQueriesArgs& args) {
  const std::size_t bytes = static_cast<std::size_t>(args.dim) * sizeof(float);
  for (std::int64_t row = 0; row < args.rows; ++row) {
    const std::int64_t end = args.starts[row + 1];
    if (end == args.starts[row]) continue;  // its slot is not checked, and may lie anywhere
    float* slot = args.ring + args.slots[row] * args.heads * args.entries * args.dim;
    for (std::int64_t token = std::max<std::int64_t>(args.starts[row], end - args.entries); token < end; ++token)
      for (std::int64_t head = 0; head < args.heads; ++head)
        std::memcpy(slot + (head * args.entries + args.positions[token] % args.entries) * args.dim,
                    args.query + (token * args.heads + head) * args.dim, bytes);
  }
}

}  // namespace ew
