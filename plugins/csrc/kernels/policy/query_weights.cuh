// The attention weights of single queries, for the ops of cache policies: logits of the heads of a group, and the
// softmax of a query over the first tokens of its row and KV head.
//
// A block has kTileTokens threads; thread i takes token i of one tile after another. The group's queries lie in shared
// memory as floats [group, head_dim], and each key is read once for kHeads of them. Logits are in powers of two.
#pragma once

#include "kernels/device/device.cuh"
#include "layout/tile.h"

namespace ew {

// The keys of a tile: halves as they are stored, or floats that a kernel has decoded.
struct TileKeys {
  const std::uint16_t* halves;
  const float* floats;

  EW_DEVICE float at(std::int64_t offset) const {
    return floats != nullptr ? floats[offset] : half_to_float(halves[offset]);
  }
};

// The stored keys of a layer, and how a query's logits are made; kv_lens and table point at the layer.
struct KeyView {
  const unsigned char* tiles;
  const std::int32_t *kv_lens, *table;
  const float* sinks;  // [query heads] or null
  float* decoded;      // [rows, kv heads, table_width, kTileTokens * head_dim], in place of the tiles' keys; or null
  std::int64_t tile_bytes;
  int table_heads, table_width, kv_heads, group, head_dim;
  float scale, softcap;

  EW_DEVICE int held(int row, int head) const { return kv_lens[row * table_heads + head]; }
  EW_DEVICE std::int64_t id(int row, int head, int index) const {
    return table[(static_cast<std::int64_t>(row) * table_heads + head) * table_width + index];
  }
  EW_DEVICE float* decoded_tile(int row, int head, int index) const {
    return decoded + ((static_cast<std::int64_t>(row) * kv_heads + head) * table_width + index) *
                         (static_cast<std::int64_t>(kTileTokens) * head_dim);
  }
  EW_DEVICE TileKeys tile(int row, int head, int index) const {
    if (decoded != nullptr) return {nullptr, decoded_tile(row, head, index)};
    return {reinterpret_cast<const std::uint16_t*>(tiles + id(row, head, index) * tile_bytes), nullptr};
  }
};

// A softmax over some tokens: the weight of a logit x is factor 2^(x - maximum).
struct Softmax {
  float maximum, factor;

  EW_DEVICE float weight(float logit) const { return factor * fast_exp2(logit - maximum); }
};

constexpr int kWeightThreads = kTileTokens;
constexpr int kHeads = 4;  // whose logits a thread computes at a time
constexpr float kNoLogit = -3.0e38f;

// The group's queries of one token, `stride` numbers from one head to the next, as floats in shared memory.
template <Type type>
EW_DEVICE void stage_queries(const KeyView& view, const std::uint16_t* first, std::int64_t stride, float* queries) {
  sync_block();  // the last ones are used up
  for (int i = thread_index(); i < view.group * view.head_dim; i += kWeightThreads)
    queries[i] = to_float<type>(first[i / view.head_dim * stride + i % view.head_dim]);
  sync_block();
}

EW_DEVICE float logit_of(const KeyView& view, float product) {
  if (!(view.softcap > 0.0f)) return product * view.scale * kLog2E;
  const float x = product * view.scale / view.softcap;
  const float e = fast_exp2(-2.0f * kLog2E * (x < 0.0f ? -x : x));
  const float bent = (1.0f - e) / (1.0f + e);
  return view.softcap * kLog2E * (x < 0.0f ? -bent : bent);
}

// Logits of heads [first, first + kHeads) of the group with the key of a tile's slot; those beyond the group are not
// written.
EW_DEVICE void find_logits(const KeyView& view, const float* queries, int first, const TileKeys& tile, int slot,
                           float (&logits)[kHeads]) {
  float sums[kHeads] = {};
  const int count = view.group - first < kHeads ? view.group - first : kHeads;
  for (int d = 0; d < view.head_dim; ++d) {
    const float key = tile.at(key_offset(slot, d, view.head_dim));
    EW_UNROLL
    for (int h = 0; h < kHeads; ++h)
      if (h < count) sums[h] += key * queries[(first + h) * view.head_dim + d];
  }
  EW_UNROLL
  for (int h = 0; h < kHeads; ++h)
    if (h < count) logits[h] = logit_of(view, sums[h]);
}

// The largest logit of the group's heads.
EW_DEVICE float largest_logit(const KeyView& view, const float* queries, const TileKeys& tile, int slot) {
  float top = kNoLogit;
  for (int first = 0; first < view.group; first += kHeads) {
    float logits[kHeads];
    find_logits(view, queries, first, tile, slot, logits);
    EW_UNROLL
    for (int h = 0; h < kHeads; ++h)
      if (first + h < view.group && logits[h] > top) top = logits[h];
  }
  return top;
}

// A softmax that grows logit by logit.
struct Running {
  float maximum = kNoLogit, denominator = 0.0f;

  EW_DEVICE void add(float logit) {
    if (logit > maximum) {
      denominator = denominator * fast_exp2(maximum - logit) + 1.0f;
      maximum = logit;
    } else {
      denominator += fast_exp2(logit - maximum);
    }
  }
};

// The threads' softmaxes as one, which has `sink` (in powers of two, kNoLogit: none) as an extra logit. `shared`: two
// floats a warp.
EW_DEVICE Softmax join(const Running& mine, float sink, float* shared) {
  constexpr int kWarps = kWeightThreads / kWarp;
  const float warp_top = warp_max(mine.maximum);
  const float sum = warp_sum(mine.denominator * fast_exp2(mine.maximum - warp_top));
  sync_block();
  if (lane_index() == 0) {
    shared[2 * warp_index()] = warp_top;
    shared[2 * warp_index() + 1] = sum;
  }
  sync_block();
  float top = sink, total = 0.0f;
  for (int w = 0; w < kWarps; ++w) top = shared[2 * w] > top ? shared[2 * w] : top;
  for (int w = 0; w < kWarps; ++w) total += shared[2 * w + 1] * fast_exp2(shared[2 * w] - top);
  if (sink > kNoLogit) total += fast_exp2(sink - top);
  return {top, 1.0f / total};
}

// The sink of a head of the group in powers of two; kNoLogit where there are none.
EW_DEVICE float sink_of(const KeyView& view, int head, int lane) {
  return view.sinks == nullptr ? kNoLogit : view.sinks[head * view.group + lane] * kLog2E;
}

EW_DEVICE float largest_sink(const KeyView& view, int head) {
  float top = kNoLogit;
  for (int lane = 0; lane < view.group; ++lane) {
    const float sink = sink_of(view, head, lane);
    top = sink > top ? sink : top;
  }
  return top;
}

// Softmaxes of the staged queries of a row and KV head over its first `seen` tokens, one a head of the group.
EW_DEVICE void find_softmaxes(const KeyView& view, const float* queries, int row, int head, int seen, float* shared,
                              Softmax* to) {
  for (int first = 0; first < view.group; first += kHeads) {
    Running running[kHeads];
    for (int token = thread_index(); token < seen; token += kTileTokens) {
      float logits[kHeads];
      find_logits(view, queries, first, view.tile(row, head, token / kTileTokens), thread_index(), logits);
      EW_UNROLL
      for (int h = 0; h < kHeads; ++h)
        if (first + h < view.group) running[h].add(logits[h]);
    }
    EW_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      if (first + h >= view.group) continue;
      const Softmax joined = join(running[h], sink_of(view, head, first + h), shared);
      if (thread_index() == 0) to[first + h] = joined;
    }
  }
}

// The same, for the largest logit of the group's heads.
EW_DEVICE void find_softmax_of_largest(const KeyView& view, const float* queries, int row, int head, int seen,
                                       float* shared, Softmax* to) {
  Running running;
  for (int token = thread_index(); token < seen; token += kTileTokens)
    running.add(largest_logit(view, queries, view.tile(row, head, token / kTileTokens), thread_index()));
  const Softmax joined = join(running, largest_sink(view, head), shared);
  if (thread_index() == 0) *to = joined;
}

// The sum and the largest of the group's weights of one token.
struct GroupWeight {
  float sum, most;
};

EW_DEVICE GroupWeight group_weight(const KeyView& view, const float* queries, const Softmax* softmaxes,
                                   const TileKeys& tile, int slot) {
  GroupWeight found{0.0f, 0.0f};
  for (int first = 0; first < view.group; first += kHeads) {
    float logits[kHeads];
    find_logits(view, queries, first, tile, slot, logits);
    EW_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      if (first + h >= view.group) continue;
      const float weight = softmaxes[first + h].weight(logits[h]);
      found.sum += weight;
      found.most = weight > found.most ? weight : found.most;
    }
  }
  return found;
}

}  // namespace ew
