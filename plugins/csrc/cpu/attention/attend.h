// Attention of one task's lanes over its tiles, and the merge of tasks' results. Include simd.h first.
#pragma once

#include "cpu/attention/attention_kernels.h"
#include "cpu/attention/microkernels.h"
#include "cpu/attention/softmax.h"

namespace ew {
namespace {

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// Lanes of a task in blocks of nearly equal size: no block of one lane next to a full one.
struct LaneBlocks {
  std::int64_t lanes, blocks;

  explicit LaneBlocks(std::int64_t count) : lanes(count), blocks((count + kMaxLanes - 1) / kMaxLanes) {}
  std::int64_t begin(std::int64_t block) const { return lanes * block / blocks; }
  int size(std::int64_t block) const { return static_cast<int>(begin(block + 1) - begin(block)); }
};

// The cache indices [low, high) that a query sees.
struct Span {
  std::int64_t low, high;
};

inline Span visible(const AttentionArgs& a, std::int64_t index) {
  return {a.window > 0 ? larger(0, index + 1 - a.window) : 0, index + 1};
}

inline float query_factor(const AttentionArgs& a) { return a.softcap > 0.0f ? a.scale / a.softcap : a.scale; }

inline const float* query_of(const AttentionArgs& a, const AttentionTask& task, std::int64_t lane) {
  const std::int64_t group = a.group(), token = a.starts[task.row] + task.query_begin + lane / group;
  return a.query + (token * a.query_heads + task.head * group + lane % group) * a.head_dim;
}

// Each block's queries, times factor, as [dim][lanes of the block]: a microkernel broadcasts neighbours.
template <class QueryOf>
inline void pack_queries(const LaneBlocks& blocks, std::int64_t dim, float factor, QueryOf query, float* packed) {
  for (std::int64_t block = 0; block < blocks.blocks; ++block) {
    const int size = blocks.size(block);
    const float* from[kMaxLanes];
    for (int r = 0; r < size; ++r) from[r] = query(blocks.begin(block) + r);
    float* to = packed + blocks.begin(block) * dim;
    for (std::int64_t d = 0; d < dim; ++d)
      for (int r = 0; r < size; ++r) *to++ = from[r][d] * factor;
  }
}

inline void widen_all(const Half* from, float* to, std::int64_t size) {  // size: a multiple of kTileTokens
  for (std::int64_t i = 0; i < size; i += kWidth) store(to + i, load(from + i));
}

// One tile as the microkernels want it, and where the next one lies.
template <class Elem>
struct TileView {
  const Elem *keys, *values, *next_keys, *next_values;
};

template <class Elem>
inline const Elem* tile_at(const AttentionArgs& a, const AttentionTask& task, std::int64_t tile) {
  const std::int64_t id = a.tile_ids(task.row, task.head)[tile];
  return reinterpret_cast<const Elem*>(a.tiles + id * tile_bytes(a.head_dim, a.value_dim, a.kv_bits));
}

// The tokens [low, high) of a tile that some lane of the block sees; its first token has cache index `base`.
inline Span visible_part(const AttentionArgs& a, const std::int64_t* indices, int size, std::int64_t base) {
  return {larger(visible(a, indices[0]).low - base, 0),
          smaller(visible(a, indices[size - 1]).high - base, kTileTokens)};
}

// Each lane's scores in [begin, end), capped and masked, become weights, and what it has summed so far follows.
inline void weigh_scores(const AttentionArgs& a, std::int64_t lane, int size, std::int64_t base, int begin, int end,
                         const TaskScratch& scratch, const Partial& out) {
  float tops[kMaxLanes];
  for (int r = 0; r < size; ++r) {  // a loop of its own: the horizontal maxima of several lanes overlap
    const Span seen = visible(a, scratch.indices[lane + r]);
    tops[r] = cap_and_mask(scratch.scores + r * kTileTokens, begin, end,
                           static_cast<int>(smaller(larger(seen.low - base, begin), end)),
                           static_cast<int>(smaller(larger(seen.high - base, 0), end)), a.softcap);
  }
  for (int r = 0; r < size; ++r)
    update_lane(scratch.scores + r * kTileTokens, begin, end, tops[r], out.maxima() + lane + r,
                out.denominators() + lane + r, out.sums(lane + r), out.value_stride);
}

// All lanes of a task against one tile whose first token has cache index `base`.
template <class Elem>
void attend_tile(const AttentionArgs& a, const LaneBlocks& blocks, const TileView<Elem>& tile, std::int64_t base,
                 const TaskScratch& scratch, const Partial& out) {
  for (std::int64_t block = 0; block < blocks.blocks; ++block) {
    const std::int64_t lane = blocks.begin(block);
    const int size = blocks.size(block);
    const Span part = visible_part(a, scratch.indices + lane, size, base);
    if (part.low >= part.high) continue;
    const int low = static_cast<int>(part.low), high = static_cast<int>(part.high);
    const TileKernels<Elem> kernels = tile_kernels<Elem>(size);
    int begin = low, end = high;
    kernels.score(scratch.queries + lane * a.head_dim, tile.keys, a.head_dim, &begin, &end, scratch.scores,
                  tile.next_keys);
    weigh_scores(a, lane, size, base, begin, end, scratch, out);
    kernels.weigh(scratch.scores, tile.values, a.value_dim, low, high, out.sums(lane), out.value_stride,
                  tile.next_values);
  }
}

// An empty result, and each lane's cache index.
inline void begin_task(const AttentionArgs& a, const AttentionTask& task, const TaskScratch& scratch,
                       const Partial& out) {
  for (std::int64_t i = 0; i < out.lanes * out.value_stride; ++i) out.data[i] = 0.0f;
  for (std::int64_t lane = 0; lane < out.lanes; ++lane) {
    out.maxima()[lane] = kMasked;
    out.denominators()[lane] = 0.0f;
    scratch.indices[lane] = a.held(task.row, task.head) + task.query_begin + lane / a.group();
  }
}

// Read the tiles as they are stored, and have the next one fetched meanwhile.
template <class Elem>
void attend_stored(const AttentionArgs& a, const AttentionTask& task, const AttentionTask* following,
                   const TaskScratch& scratch, const Partial& out) {
  const LaneBlocks blocks(out.lanes);
  const std::int64_t keys = kTileTokens * a.head_dim;
  for (std::int64_t tile = task.tile_begin; tile < task.tile_end; ++tile) {
    const Elem* here = tile_at<Elem>(a, task, tile);
    const Elem* next = tile + 1 < task.tile_end ? tile_at<Elem>(a, task, tile + 1)
                       : following              ? tile_at<Elem>(a, *following, following->tile_begin)
                                                : here;
    attend_tile<Elem>(a, blocks, {here, here + keys, next, next + keys}, tile * kTileTokens, scratch, out);
  }
}

// Convert each tile once for all lane blocks: pays from kFusedLanes lanes on.
inline void attend_widened(const AttentionArgs& a, const AttentionTask& task, const TaskScratch& scratch,
                           const Partial& out) {
  const LaneBlocks blocks(out.lanes);
  const std::int64_t keys = kTileTokens * a.head_dim;
  for (std::int64_t tile = task.tile_begin; tile < task.tile_end; ++tile) {
    const Half* here = tile_at<Half>(a, task, tile);
    widen_all(here, scratch.keys, keys);
    widen_all(here + keys, scratch.values, kTileTokens * a.value_dim);
    attend_tile<float>(a, blocks, {scratch.keys, scratch.values, scratch.keys, scratch.values}, tile * kTileTokens,
                       scratch, out);
  }
}

inline void attend(const AttentionArgs& a, const AttentionTask& task, const AttentionTask* following,
                   const TaskScratch& scratch, const Partial& out) {
  begin_task(a, task, scratch, out);
  const auto query = [&](std::int64_t lane) { return query_of(a, task, lane); };
  pack_queries(LaneBlocks(out.lanes), a.head_dim, query_factor(a), query, scratch.queries);
  if (a.kv_bits == 32)
    attend_stored<float>(a, task, following, scratch, out);
  else if (out.lanes <= kFusedLanes)
    attend_stored<Half>(a, task, following, scratch, out);
  else
    attend_widened(a, task, scratch, out);
}

// Turn each part's maximum for `lane` into its factor on the way to the common maximum; returns the denominator.
inline float join_factors(const Partial& first, std::int64_t count, std::int64_t lane, const float* sink) {
  float* maxima = first.maxima() + lane;
  const float* denominators = first.denominators() + lane;
  const std::int64_t size = first.floats();
  float top = sink ? *sink : kMasked;
  for (std::int64_t i = 0; i < count; ++i) top = maxima[i * size] > top ? maxima[i * size] : top;
  float total = sink ? exp(*sink - top) : 0.0f;
  for (std::int64_t i = 0; i < count; ++i) {
    maxima[i * size] = exp(maxima[i * size] - top);
    total += denominators[i * size] * maxima[i * size];
  }
  return total;
}

// Joins parts first, first + 1, ... in that order, no matter which thread computed them; their maxima are used up.
inline void merge(const AttentionArgs& a, const AttentionTask& task, const Partial& first, std::int64_t count) {
  const std::int64_t group = a.group(), token = a.starts[task.row] + task.query_begin, size = first.floats();
  for (std::int64_t lane = 0; lane < first.lanes; ++lane) {
    const std::int64_t head = task.head * group + lane % group;
    const Vec total = splat(join_factors(first, count, lane, a.sinks ? a.sinks + head : nullptr));
    float* out = a.output + ((token + lane / group) * a.query_heads + head) * a.value_dim;
    for (std::int64_t col = 0; col < a.value_dim; col += kWidth) {
      Vec x = splat(0.0f);
      for (std::int64_t i = 0; i < count; ++i)
        x = fma(load(first.sums(lane) + i * size + col), splat(first.maxima()[i * size + lane]), x);
      store_part(out + col, x / total, static_cast<int>(smaller(kWidth, a.value_dim - col)));
    }
  }
}

}  // namespace
}  // namespace ew
