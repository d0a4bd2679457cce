// CompactTiles on the CPU.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/simd/variants.h"
#include "cpu/threads/parallel.h"
#include "generated/attributes/compact_tiles.h"

namespace ew {

// One call of CompactTiles: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct CompactTilesArgs : declared::compact_tiles::AttributeValues {
  unsigned char* tiles = nullptr;       // [tile_count, tile_bytes]
  const std::int32_t* moves = nullptr;  // [count, 4]
  float* marks = nullptr;               // [tile_count, channels, kTileTokens], or null
  std::int64_t count = 0, tile_count = 0, channels = 0;
};

// Follow the moves [begin, end).
EW_CPU_KERNEL(void, move_tokens_kernel, const CompactTilesArgs&, std::int64_t begin, std::int64_t end);

// The first thing wrong with the contents of a call, as "name: got X, expected Y"; empty when there is none.
std::string find_fault(const CompactTilesArgs& args);

// A whole call, divided among the host's threads.
void compact_tiles(const CompactTilesArgs& args, const Parallel& parallel);

}  // namespace ew
