// The importance of the tokens of one row and KV head. Include simd.h first.
#pragma once

#include "cpu/policy/probabilities.h"
#include "cpu/policy/token_scores.h"

namespace ew {
namespace {

constexpr std::int64_t kMaxLogit = 0, kMean = 1;  // the attribute `group`

// One head's window: where its queries lie, and what they see.
struct Window {
  const TokenScoresArgs& args;
  std::int64_t row, head, held;

  const float* query(std::int64_t t, std::int64_t lane) const {
    const std::int64_t query_head = head * args.group_size() + lane;
    const std::int64_t entry = (args.last_positions[row] - args.window + 1 + t) % args.entries;
    return args.ring +
           ((args.slots[row] * args.query_heads + query_head) * args.entries + entry) * args.stored.head_dim;
  }
  std::int64_t seen(std::int64_t t) const { return args.scope == 0 ? held - args.window : held - args.window + 1 + t; }
};

// The sink of a query head; of a group whose logits become one, the largest. Null where there is none.
inline const float* sink_of(const TokenScoresArgs& a, std::int64_t head, std::int64_t lane) {
  if (!a.sinks) return nullptr;
  const float* sinks = a.sinks + head * a.group_size();
  if (a.group != kMaxLogit) return sinks + lane;
  for (std::int64_t other = 1; other < a.group_size(); ++other)
    if (sinks[other] > sinks[lane]) lane = other;
  return sinks + lane;
}

// Add the probabilities of a window's query, whose lanes begin at `first`, to out.
inline void add_query(const TokenScoresArgs& a, std::int64_t head, const LaneScores& scores, std::int64_t first,
                      std::int64_t tokens, std::int64_t seen, float* out) {
  const std::int64_t group = a.group_size();
  if (a.group == kMaxLogit) largest_of_lanes(scores, first, group, tokens);
  const std::int64_t lanes = a.group == kMaxLogit ? 1 : group;
  const float share = (a.group == kMean ? 1.0f / static_cast<float>(group) : 1.0f) *
                      (a.scope == 0 ? 1.0f / static_cast<float>(a.window) : 1.0f);
  for (std::int64_t lane = 0; lane < lanes; ++lane) {
    const Vec factor = splat(share * weigh_lane(scores, first + lane, tokens, seen, a.softcap, sink_of(a, head, lane)));
    for (std::int64_t tile = 0; tile < tiles_of(tokens); ++tile)
      for (int t = 0; t < scored_end(tokens, tile); t += kWidth) {
        float* at = scores.at(tile, first + lane) + t;
        float* sum = out + tile * kTileTokens + t;
        const Vec weight = load(at) * factor;
        if (a.group <= kMean)
          store(sum, load(sum) + weight);
        else
          store(scores.at(tile, first) + t, lane == 0 ? weight : max(weight, load(scores.at(tile, first) + t)));
      }
  }
  if (a.group <= kMean) return;
  for (std::int64_t tile = 0; tile < tiles_of(tokens); ++tile)
    for (int t = 0; t < scored_end(tokens, tile); t += kWidth) {
      float* sum = out + tile * kTileTokens + t;
      store(sum, load(sum) + load(scores.at(tile, first) + t));
    }
}

inline void find_importance(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, float* scratch) {
  const Window window{a, row, head, a.stored.held(row, head)};
  const std::int64_t group = a.group_size(), step = window_queries(a, kMaxLanes);
  const LogitScale logits{a.scale, a.softcap};
  float* out = a.importance_of(row, head);
  for (std::int64_t t = 0; t < a.window; t += step) {
    const std::int64_t count = smaller(step, a.window - t), tokens = window.seen(t + count - 1);
    float* packed = scratch;
    const LaneScores scores{scratch + step * group * a.stored.head_dim, count * group};
    const auto query = [&](std::int64_t lane) { return window.query(t + lane / group, lane % group); };
    pack_queries(LaneBlocks(count * group), a.stored.head_dim, logits.query_factor(), query, packed);
    if (a.kv_bits == 32)
      score_tokens<float>(a.stored, a.stored.tile_ids(row, head), tokens, packed, scores);
    else
      score_tokens<Half>(a.stored, a.stored.tile_ids(row, head), tokens, packed, scores);
    for (std::int64_t i = 0; i < count; ++i) add_query(a, head, scores, i * group, tokens, window.seen(t + i), out);
  }
}

}  // namespace
}  // namespace ew
