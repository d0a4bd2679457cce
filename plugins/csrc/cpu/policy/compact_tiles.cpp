#include "cpu/policy/compact_tiles.h"

#include <cstring>
#include <vector>

#include "cpu/threads/fault.h"
#include "cpu/threads/rows.h"
#include "layout/tile.h"

namespace ew {
namespace {

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

// Elem: of a size of a stored number; its bits are copied.
template <class Elem>
void move_token(const CompactTilesArgs& args, const std::int32_t* move) {
  const std::int64_t bytes = tile_bytes(args.head_dim, args.value_dim, args.kv_bits), from = move[1], to = move[3];
  const auto* source = reinterpret_cast<const Elem*>(args.tiles + move[0] * bytes);
  auto* target = reinterpret_cast<Elem*>(args.tiles + move[2] * bytes);
  for (std::int64_t d = 0; d < args.head_dim; ++d)
    target[key_offset(to, d, args.head_dim)] = source[key_offset(from, d, args.head_dim)];
  std::memcpy(target + value_offset(to, args.head_dim, args.value_dim),
              source + value_offset(from, args.head_dim, args.value_dim),
              static_cast<std::size_t>(args.value_dim) * sizeof(Elem));
  for (std::int64_t c = 0; c < args.channels; ++c)
    args.marks[(move[2] * args.channels + c) * kTileTokens + to] =
        args.marks[(move[0] * args.channels + c) * kTileTokens + from];
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
  for_rows(parallel, args.count, args.head_dim + args.value_dim, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t move = begin; move < end; ++move)
      args.kv_bits == 32 ? move_token<std::uint32_t>(args, args.moves + 4 * move)
                         : move_token<std::uint16_t>(args, args.moves + 4 * move);
  });
}

}  // namespace ew
