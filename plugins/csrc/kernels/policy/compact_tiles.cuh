// CompactTiles: copies single tokens of a pool, and their marks, to other places.
//
// A warp takes one move. A key's numbers lie 16 apart (layout/tile.h), a value's are neighbours, and marks
// [tiles, channels, kTileTokens] lie kTileTokens apart. Bytes: each token once in and once out, in sectors of 32 bytes
// of which a lone key uses one number; neighbours that move to neighbours share them in the second cache. Any
// architecture.
#pragma once

#include "kernels/device/device.cuh"
#include "layout/tile.h"

namespace ew::compact_tiles {

struct Task {
  unsigned char* tiles;
  const std::int32_t* moves;
  float* marks;
  std::int64_t count, tile_bytes;
  int head_dim, value_dim, channels;
};

constexpr int kThreads = 256;
constexpr int kMoves = kThreads / kWarp;  // of a block

// Elem: of the size of a stored number; its bits are copied.
template <class Elem>
EW_KERNEL(kThreads, 4)
compact_tiles_kernel(EW_CONSTANT Task task) {
  const std::int64_t move = static_cast<std::int64_t>(block_x()) * kMoves + warp_index();
  if (move >= task.count) return;
  const std::int32_t* fields = task.moves + 4 * move;
  const std::int64_t source = fields[0], target = fields[2];
  const int from = fields[1], to = fields[3];
  const Elem* read = reinterpret_cast<const Elem*>(task.tiles + source * task.tile_bytes);
  Elem* write = reinterpret_cast<Elem*>(task.tiles + target * task.tile_bytes);
  for (int d = lane_index(); d < task.head_dim; d += kWarp)
    write[key_offset(to, d, task.head_dim)] = read[key_offset(from, d, task.head_dim)];
  const Elem* value = read + value_offset(from, task.head_dim, task.value_dim);
  Elem* moved = write + value_offset(to, task.head_dim, task.value_dim);
  for (int d = lane_index(); d < task.value_dim; d += kWarp) moved[d] = value[d];
  for (int c = lane_index(); c < task.channels; c += kWarp)
    task.marks[(target * task.channels + c) * kTileTokens + to] =
        task.marks[(source * task.channels + c) * kTileTokens + from];
}

}  // namespace ew::compact_tiles
