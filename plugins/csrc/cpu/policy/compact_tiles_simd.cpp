// The kernel of CompactTiles, compiled once for each instruction set.
#include "cpu/simd/simd.h"
// the headers below need its functions
#include <cstring>

#include "cpu/policy/compact_tiles.h"

namespace ew {
namespace {

// Moves [begin, end) to consecutive places of one block, of tokens that lie in two blocks, or in one.
struct Run {
  std::int64_t begin, end;
  const std::int32_t *first, *second;  // a move out of each of the two
};

inline bool goes_on(const std::int32_t* move, const std::int32_t* next) {
  return next[2] == move[2] && next[3] == move[3] + 1 && next[3] % kBlockTokens != 0;
}

inline bool is_same_block(const std::int32_t* move, const std::int32_t* other) {
  return move[0] == other[0] && move[1] / kBlockTokens == other[1] / kBlockTokens;
}

inline Run find_run(const CompactTilesArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int32_t* first = args.moves + 4 * begin;
  Run run{begin, begin + 1, first, first};
  for (; run.end < end; ++run.end) {
    const std::int32_t* move = args.moves + 4 * run.end;
    if (!goes_on(move - 4, move)) break;
    if (is_same_block(move, first)) continue;
    if (run.second == first)
      run.second = move;
    else if (!is_same_block(move, run.second))
      break;
  }
  return run;
}

template <class Elem>
Elem* tile_at(const CompactTilesArgs& args, std::int32_t tile) {
  return reinterpret_cast<Elem*>(args.tiles + tile * tile_bytes(args.head_dim, args.value_dim, args.kv_bits));
}

template <class Elem>
void move_keys(const CompactTilesArgs& args, const Run& run) {
  const std::int64_t dim = args.head_dim;
  const auto block_of = [&](const std::int32_t* move) {
    return tile_at<Elem>(args, move[0]) + key_offset(move[1] / kBlockTokens * kBlockTokens, std::int64_t{0}, dim);
  };
  Elem places[kBlockTokens] = {};
  for (std::int64_t i = run.begin; i < run.end; ++i) {
    const std::int32_t* move = args.moves + 4 * i;
    places[i - run.begin] =
        static_cast<Elem>(move[1] % kBlockTokens + (is_same_block(move, run.first) ? 0 : kBlockTokens));
  }
  pick_rows(block_of(run.first), block_of(run.second), places, static_cast<int>(run.end - run.begin), dim,
            tile_at<Elem>(args, run.first[2]) + key_offset(run.first[3], std::int64_t{0}, dim));
}

// Values of tokens that follow each other lie in one piece.
template <class Elem>
void move_values(const CompactTilesArgs& args, const Run& run) {
  for (std::int64_t i = run.begin, next = i; i < run.end; i = next) {
    const std::int32_t* move = args.moves + 4 * i;
    for (++next; next < run.end && args.moves[4 * next] == move[0] && args.moves[4 * next + 1] == move[1] + next - i;)
      ++next;
    std::memcpy(tile_at<Elem>(args, move[2]) + value_offset(move[3], args.head_dim, args.value_dim),
                tile_at<Elem>(args, move[0]) + value_offset(move[1], args.head_dim, args.value_dim),
                static_cast<std::size_t>((next - i) * args.value_dim) * sizeof(Elem));
  }
}

inline void move_marks(const CompactTilesArgs& args, const Run& run) {
  for (std::int64_t i = run.begin; i < run.end; ++i) {
    const std::int32_t* move = args.moves + 4 * i;
    for (std::int64_t c = 0; c < args.channels; ++c)
      args.marks[(move[2] * args.channels + c) * kTileTokens + move[3]] =
          args.marks[(move[0] * args.channels + c) * kTileTokens + move[1]];
  }
}

// Elem: of a size of a stored number; its bits are copied.
template <class Elem>
void move_all(const CompactTilesArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end;) {
    const Run run = find_run(args, i, end);
    move_keys<Elem>(args, run);
    move_values<Elem>(args, run);
    move_marks(args, run);
    i = run.end;
  }
}

void move_tokens(const CompactTilesArgs& args, std::int64_t begin, std::int64_t end) {
  args.kv_bits == 32 ? move_all<std::uint32_t>(args, begin, end) : move_all<std::uint16_t>(args, begin, end);
}

}  // namespace

EW_DEFINE_CPU_KERNEL(move_tokens_kernel, move_tokens);

}  // namespace ew
