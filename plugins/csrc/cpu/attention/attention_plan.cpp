#include "cpu/attention/attention_plan.h"

#include <algorithm>

namespace ew {

TileRange visible_tiles(const AttentionArgs& args, std::int64_t row, std::int64_t head, std::int64_t query_begin,
                        std::int64_t count) {
  const std::int64_t first = args.held(row, head) + query_begin, end = first + count;
  const std::int64_t low = args.window > 0 ? std::max<std::int64_t>(0, first + 1 - args.window) : 0;
  return {low / kTileTokens, (end + kTileTokens - 1) / kTileTokens};
}

void AttentionPlan::build(const AttentionArgs& args) {
  tasks.clear();
  joins.clear();
  part_floats = max_lanes = work = 0;
  for (std::int64_t row = 0; row < args.rows; ++row)
    for (std::int64_t head = 0; head < args.kv_heads; ++head)
      if (args.starts[row + 1] > args.starts[row]) add_row(args, row, head);
  for (const AttentionTask& task : tasks) {
    const std::int64_t lanes = task.query_count * args.group();
    max_lanes = std::max(max_lanes, lanes);
    work += lanes * (task.tile_end - task.tile_begin) * kTileTokens * (args.head_dim + args.value_dim);
  }
}

// Many queries: one task per block of queries. Few: one result per KV head, its context split among tasks.
void AttentionPlan::add_row(const AttentionArgs& args, std::int64_t row, std::int64_t head) {
  const std::int64_t count = args.starts[row + 1] - args.starts[row];
  const std::int64_t queries = std::max<std::int64_t>(1, kTaskLanes / args.group());
  for (std::int64_t begin = 0; begin < count; begin += queries) {
    const std::int64_t size = std::min(queries, count - begin);
    const TileRange tiles = visible_tiles(args, row, head, begin, size);
    const AttentionTask task = {row, head, begin, size, tiles.begin, tiles.end, -1, 0};
    if (count <= queries)
      add_split(args, task);
    else
      tasks.push_back(task);
  }
}

// Parts end at multiples of kChunkTiles, counted from the start of the cache.
void AttentionPlan::add_split(const AttentionArgs& args, AttentionTask whole) {
  const std::int64_t first_chunk = whole.tile_begin / kChunkTiles;
  const std::int64_t parts = (whole.tile_end + kChunkTiles - 1) / kChunkTiles - first_chunk;
  if (parts == 1) {
    tasks.push_back(whole);
    return;
  }
  const std::int64_t lanes = whole.query_count * args.group();
  const std::int64_t size = Partial{nullptr, lanes, value_stride(args.value_dim)}.floats();
  joins.push_back({whole, part_floats, parts});
  for (std::int64_t chunk = first_chunk; chunk < first_chunk + parts; ++chunk) {
    AttentionTask task = whole;
    task.tile_begin = std::max(whole.tile_begin, chunk * kChunkTiles);
    task.tile_end = std::min(whole.tile_end, (chunk + 1) * kChunkTiles);
    task.join = static_cast<std::int64_t>(joins.size()) - 1;
    task.part = part_floats;
    part_floats += size;
    tasks.push_back(task);
  }
}

}  // namespace ew
