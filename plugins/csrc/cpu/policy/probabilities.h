// The attention probabilities of a few queries over the first tokens of one row and KV head. Include simd.h first.
#pragma once

#include "cpu/attention/attend.h"
#include "cpu/policy/stored_keys.h"

namespace ew {
namespace {

// How logits are made of products.
struct LogitScale {
  float scale, softcap;

  float query_factor() const { return softcap > 0.0f ? scale / softcap : scale; }
};

// Lanes of queries against tiles: scores[tile, lane, kTileTokens]. The first `ends[tile]` of a lane's are written.
struct LaneScores {
  float* scores;
  std::int64_t lanes;

  float* at(std::int64_t tile, std::int64_t lane) const { return scores + (tile * lanes + lane) * kTileTokens; }
};

// A lane's tokens of a tile that were scored: the wanted ones, rounded up to whole steps of every microkernel.
inline int scored_end(std::int64_t tokens, std::int64_t tile) {
  constexpr int kStep = 8 * kWidth < kTileTokens ? 8 * kWidth : kTileTokens;
  const std::int64_t wanted = smaller(tokens - tile * kTileTokens, kTileTokens);
  return static_cast<int>((wanted + kStep - 1) / kStep * kStep);
}

// Products of packed queries (pack_queries) with the first `tokens` keys.
template <class Elem>
void score_tokens(const StoredKeys& stored, const std::int32_t* ids, std::int64_t tokens, const float* packed,
                  const LaneScores& out) {
  const LaneBlocks blocks(out.lanes);
  const std::int64_t tiles = tiles_of(tokens);
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    const auto* keys = reinterpret_cast<const Elem*>(stored.tiles + ids[tile] * stored.tile_bytes);
    const auto* next =
        reinterpret_cast<const Elem*>(stored.tiles + ids[tile + 1 < tiles ? tile + 1 : tile] * stored.tile_bytes);
    for (std::int64_t block = 0; block < blocks.blocks; ++block) {
      const std::int64_t lane = blocks.begin(block);
      int begin = 0, end = scored_end(tokens, tile);
      tile_kernels<Elem>(blocks.size(block))
          .score(packed + lane * stored.head_dim, keys, stored.head_dim, &begin, &end, out.at(tile, lane), next);
    }
  }
}

// The largest of `count` lanes' scores becomes the first lane's.
inline void largest_of_lanes(const LaneScores& scores, std::int64_t lane, std::int64_t count, std::int64_t tokens) {
  for (std::int64_t tile = 0; tile < tiles_of(tokens); ++tile)
    for (int t = 0; t < scored_end(tokens, tile); t += kWidth) {
      Vec top = load(scores.at(tile, lane) + t);
      for (std::int64_t other = 1; other < count; ++other) top = max(load(scores.at(tile, lane + other) + t), top);
      store(scores.at(tile, lane) + t, top);
    }
}

// A lane's scores of `tokens` tokens, of which it sees the first `seen`, become e^(logit - maximum), 0 where it sees
// none. Returns the factor that makes them probabilities; `sink` is an extra logit, or null.
inline float weigh_lane(const LaneScores& scores, std::int64_t lane, std::int64_t tokens, std::int64_t seen,
                        float softcap, const float* sink) {
  float top = sink ? *sink : kMasked;
  for (std::int64_t tile = 0; tile < tiles_of(tokens); ++tile) {
    const int end = scored_end(tokens, tile);
    const int high = static_cast<int>(smaller(larger(seen - tile * kTileTokens, 0), end));
    const float largest = cap_and_mask(scores.at(tile, lane), 0, end, 0, high, softcap);
    top = largest > top ? largest : top;
  }
  float total = sink ? exp(*sink - top) : 0.0f;
  for (std::int64_t tile = 0; tile < tiles_of(tokens); ++tile)
    total += weights_from_scores(scores.at(tile, lane), 0, scored_end(tokens, tile), top);
  return 1.0f / total;
}

}  // namespace
}  // namespace ew
