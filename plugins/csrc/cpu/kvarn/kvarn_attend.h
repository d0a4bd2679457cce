// Attention over the three regions of a KVarN cache. Include simd.h first.
#pragma once

#include "cpu/attention/attend.h"
#include "cpu/kvarn/code_kernels.h"
#include "cpu/kvarn/hadamard.h"
#include "cpu/kvarn/kvarn_dequantize.h"

namespace ew {
namespace {

// The lane's query rotated and scaled, [lanes, head_dim]; packed as well, for the exact tiles.
inline void turn_queries(const KVarNArgs& a, const AttentionTask& task, const LaneBlocks& blocks,
                         const TaskScratch& scratch) {
  for (std::int64_t lane = 0; lane < blocks.lanes; ++lane)
    hadamard(query_of(a, task, lane), a.head_dim, query_factor(a), scratch.turned + lane * a.head_dim);
  const auto turned = [&](std::int64_t lane) { return scratch.turned + lane * a.head_dim; };
  pack_queries(blocks, a.head_dim, 1.0f, turned, scratch.queries);
}

// to[i] = x[i] * a[i]; returns the sum of x[i] * b[i].
inline float fold(const float* x, const Half* a, const Half* b, std::int64_t size, float* to) {
  Vec total = splat(0.0f);
  for (std::int64_t i = 0; i < size; i += kWidth) {
    const Vec v = load(x + i);
    store(to + i, v * load(a + i));
    total = fma(v, load(b + i), total);
  }
  return sum(total);
}

// A lane's scores: c[t] * (sum over d of (q[d] a[d]) code[d, t] + sum over d of q[d] b[d]).
inline void score_codes(const KVarNArgs& a, const CodedSide& keys, const CodedSide& next, std::int64_t lane, int size,
                        const TaskScratch& scratch) {
  float starts[kMaxLanes];
  for (int r = 0; r < size; ++r)
    starts[r] =
        fold(scratch.turned + (lane + r) * a.head_dim, keys.a, keys.b, a.head_dim, scratch.folded + r * kFoldedStride);
  multiply_rows_for(size, a.k_bits())(scratch.folded, kFoldedStride, starts, keys.codes, kTileTokens * a.k_bits() / 8,
                                      a.head_dim, scratch.strided, kTileTokens, next.codes);
  for (int r = 0; r < size; ++r)
    for_ordered(a.k_bits(), scratch.strided + r * kTileTokens, kTileTokens,
                [&](std::int64_t t, Vec x) { store(scratch.scores + r * kTileTokens + t, x * load(keys.c + t)); });
}

// A lane's sums grow by c[d] * (sum over t of (w[t] a[t]) code[t, d] + sum over t of w[t] b[t]).
inline void weigh_codes(const KVarNArgs& a, const CodedSide& values, const CodedSide& next, std::int64_t lane, int size,
                        const TaskScratch& scratch, const Partial& out) {
  float starts[kMaxLanes];
  for (int r = 0; r < size; ++r)
    starts[r] =
        fold(scratch.scores + r * kTileTokens, values.a, values.b, kTileTokens, scratch.strided + r * kTileTokens);
  multiply_rows_for(size, a.v_bits())(scratch.strided, kTileTokens, starts, values.codes, a.head_dim * a.v_bits() / 8,
                                      kTileTokens, scratch.folded, kFoldedStride, next.codes);
  for (int r = 0; r < size; ++r) {
    float* sums = out.sums(lane + r);
    for_ordered(a.v_bits(), scratch.folded + r * kFoldedStride, a.head_dim,
                [&](std::int64_t d, Vec x) { store(sums + d, fma(x, load(values.c + d), load(sums + d))); });
  }
}

// Ask for the scales of a record, which the loops over its codes do not touch.
inline void prefetch_scales(const CodedSide& tile, std::int64_t rows, std::int64_t columns) {
  const auto* first = reinterpret_cast<const unsigned char*>(tile.a < tile.c ? tile.a : tile.c);
  for (std::int64_t b = 0; b < 2 * (2 * rows + columns); b += 64) prefetch(first + b);
}

// All lanes of a task against one record whose first token has cache index `base`, without decoding it.
inline void attend_record(const KVarNArgs& a, const LaneBlocks& blocks, const Record& record, const Record& next,
                          std::int64_t base, const TaskScratch& scratch, const Partial& out) {
  prefetch_scales(next.keys, a.head_dim, kTileTokens);
  prefetch_scales(next.values, kTileTokens, a.head_dim);
  for (std::int64_t block = 0; block < blocks.blocks; ++block) {
    const std::int64_t lane = blocks.begin(block);
    const int size = blocks.size(block);
    const Span part = visible_part(a, scratch.indices + lane, size, base);
    if (part.low >= part.high) continue;
    score_codes(a, record.keys, next.keys, lane, size, scratch);
    weigh_scores(a, lane, size, base, 0, kTileTokens, scratch, out);
    weigh_codes(a, record.values, next.values, lane, size, scratch, out);
  }
}

// True where the microkernels read a row of codes in whole vectors of bytes.
inline bool reads_codes(const KVarNArgs& a) { return a.head_dim * a.v_bits() / 8 % kWidth == 0; }

// The address of the task's next tile, or of the first one of the task that follows. An exact tile is fetched ahead as
// if it were a record: its first lines, on which the hardware's prefetchers go on.
inline unsigned char* next_tile(const KVarNArgs& a, const AttentionTask& task, const AttentionTask* following,
                                std::int64_t tile) {
  if (tile == task.tile_end && !following) return a.tile_data(task.row, task.head, tile - 1);
  if (tile == task.tile_end) return a.tile_data(following->row, following->head, following->tile_begin);
  return a.tile_data(task.row, task.head, tile);
}

inline void attend_exact(const KVarNArgs& a, const LaneBlocks& blocks, const Half* tile, std::int64_t base,
                         const TaskScratch& scratch, const Partial& out) {
  const std::int64_t keys = kTileTokens * a.head_dim;
  if (blocks.lanes <= kFusedLanes) {
    attend_tile<Half>(a, blocks, {tile, tile + keys, tile, tile + keys}, base, scratch, out);
    return;
  }
  widen_all(tile, scratch.keys, keys);
  widen_all(tile + keys, scratch.values, keys);
  attend_tile<float>(a, blocks, {scratch.keys, scratch.values, scratch.keys, scratch.values}, base, scratch, out);
}

inline void attend_kvarn(const KVarNArgs& a, const AttentionTask& task, const AttentionTask* following,
                         const TaskScratch& scratch, const Partial& out) {
  const LaneBlocks blocks(out.lanes);
  begin_task(a, task, scratch, out);
  turn_queries(a, task, blocks, scratch);
  const bool fused = out.lanes <= kFusedLanes && reads_codes(a);
  for (std::int64_t tile = task.tile_begin; tile < task.tile_end; ++tile) {
    const std::int64_t base = tile * kTileTokens;
    if (!a.is_record(task.row, task.head, tile)) {
      attend_exact(a, blocks, a.exact_tile(task.row, task.head, tile), base, scratch, out);
      continue;
    }
    const Record record = a.record(task.row, task.head, tile);
    if (fused) {
      const Record next(next_tile(a, task, following, tile + 1), a.head_dim, a.k_bits(), a.v_bits());
      attend_record(a, blocks, record, next, base, scratch, out);
    } else {
      dequantize(a, record, scratch);
      attend_tile<float>(a, blocks, {scratch.keys, scratch.values, scratch.keys, scratch.values}, base, scratch, out);
    }
  }
}

inline void merge_kvarn(const KVarNArgs& a, const AttentionTask& task, const Partial& first, std::int64_t count) {
  merge(a, task, first, count);
  if (!a.attributes.rotate_values) return;
  for (std::int64_t lane = 0; lane < first.lanes; ++lane) {
    float* out = a.output + (query_of(a, task, lane) - a.query);  // query and output have one shape
    hadamard(out, a.head_dim, 1.0f, out);
  }
}

}  // namespace
}  // namespace ew
