// The split of an attention call into tasks. It depends only on a row's own lengths, never on threads or on other
// rows, so a row's result is bitwise the same whatever else the call contains.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/attention/attention_kernels.h"

namespace ew {

constexpr std::int64_t kTaskLanes = 128;  // lanes that share one conversion of a tile; their sums stay in L2
constexpr std::int64_t kChunkTiles = 8;   // tiles of one part of a split context

// `parts` tasks whose partial results, one after another from float `first` on, make one result.
struct Join {
  AttentionTask whole;
  std::int64_t first, parts;
};

struct AttentionPlan {
  std::vector<AttentionTask> tasks;
  std::vector<Join> joins;
  std::int64_t part_floats;  // memory for all partial results
  std::int64_t max_lanes;    // of any task
  std::int64_t work;         // multiply-adds, roughly

  void build(const AttentionArgs& args);

 private:
  void add_row(const AttentionArgs& args, std::int64_t row, std::int64_t head);
  void add_split(const AttentionArgs& args, AttentionTask whole);
};

// Floats between two lanes' sums: value_dim rounded up to whole vectors of every ISA.
constexpr std::int64_t value_stride(std::int64_t value_dim) { return (value_dim + 15) / 16 * 16; }

// Tiles [begin, end) that queries [query_begin, query_begin + count) of a row see.
struct TileRange {
  std::int64_t begin, end;
};
TileRange visible_tiles(const AttentionArgs& args, std::int64_t row, std::int64_t head, std::int64_t query_begin,
                        std::int64_t count);

}  // namespace ew
