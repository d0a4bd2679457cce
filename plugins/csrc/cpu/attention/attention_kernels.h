// The kernels of attention over tiles of one row and KV head, for each instruction set, and the form of their tasks.
#pragma once

#include <cstdint>

#include "cpu/attention/attention_args.h"
#include "cpu/simd/variants.h"
#include "layout/kvarn_record.h"
#include "layout/tile.h"

namespace ew {

// Queries of one row over the tiles [tile_begin, tile_end) of one KV head. A lane is one (query, group head) pair;
// lane = query * group + group head.
struct AttentionTask {
  std::int64_t row, head;
  std::int64_t query_begin, query_count;  // within the row's new tokens
  std::int64_t tile_begin, tile_end;
  std::int64_t join;  // the joined result this task is a part of; -1: it is the whole result
  std::int64_t part;  // where the part lies, in floats
};

// A task's result before normalisation, for `lanes` lanes: sums[lane, value_stride], then the running maximum and
// the running denominator of each lane.
struct Partial {
  float* data;
  std::int64_t lanes, value_stride;

  float* sums(std::int64_t lane) const { return data + lane * value_stride; }
  float* maxima() const { return data + lanes * value_stride; }
  float* denominators() const { return maxima() + lanes; }
  std::int64_t floats() const { return lanes * (value_stride + 2); }
};

// Memory of one thread while it runs a task.
struct TaskScratch {
  float* queries;         // lanes x head_dim, packed per lane block
  float* scores;          // kMaxLanesPerBlock x kTileTokens
  float* turned;          // lanes x head_dim: queries rotated and scaled (KVarN)
  float* folded;          // kMaxLanesPerBlock x kFoldedStride: queries with a tile's scales (KVarN)
  float* strided;         // kMaxLanesPerBlock x kTileTokens: scores in the order of the codes (KVarN)
  float* keys;            // a tile's keys as float, same layout
  float* values;          // a tile's values as float
  std::int64_t* indices;  // each lane's cache index
};

constexpr int kMaxLanesPerBlock = 8;
constexpr std::int64_t kFoldedStride = kMaxHeadDim + 16;  // not a power of two: lanes fall into different cache sets
constexpr std::int64_t kFusedLanes = 16;  // up to here halves convert in the microkernel, above that once per tile

// Write the keys and values of the row's new tokens [begin, begin + count) of one KV head into their tiles.
EW_CPU_KERNEL(void, write_tokens_kernel, const AttentionArgs&, std::int64_t row, std::int64_t head, std::int64_t begin,
              std::int64_t count);

// `following`: the task this thread most likely runs next, whose first tile is fetched ahead; or null.
EW_CPU_KERNEL(void, attend_kernel, const AttentionArgs&, const AttentionTask&, const AttentionTask* following,
              const TaskScratch&, const Partial&);

// Join `count` partials (laid out one after another from `first`) in order, and write the row's output.
EW_CPU_KERNEL(void, merge_kernel, const AttentionArgs&, const AttentionTask&, const Partial& first, std::int64_t count);

}  // namespace ew
