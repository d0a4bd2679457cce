// The kernel of MarkTokens, compiled once for each instruction set.
#include "cpu/simd/simd.h"
// the headers below need Vec
#include "cpu/policy/mark_tokens.h"
#include "cpu/policy/probabilities.h"

namespace ew {
namespace {

constexpr std::int64_t kMass = 0, kRecurrence = 1, kGiven = 2;  // the attribute `kind`

// One row and KV head.
struct MarkedHead {
  const MarkTokensArgs& args;
  std::int64_t row, head;

  float* marks(std::int64_t tile, std::int64_t channel) const {
    const std::int64_t id = args.stored.tile_ids(row, head)[tile];
    return args.marks + (id * args.channels() + channel) * kTileTokens;
  }
};

// What a new token's first number begins with.
inline float first_mark(const MarkedHead& m, std::int64_t token) {
  if (m.args.kind == kMass) return 0.0f;
  if (m.args.kind == kGiven) return m.args.values[token * m.args.kv_heads + m.head];
  return static_cast<float>(m.args.positions[token]);
}

// Marks of the row's new tokens as they begin.
inline void begin_marks(const MarkedHead& m) {
  const std::int64_t held = m.args.stored.held(m.row, m.head);
  for (std::int64_t i = 0; i < m.args.fresh(m.row); ++i) {
    const std::int64_t tile = (held + i) / kTileTokens, place = (held + i) % kTileTokens;
    m.marks(tile, 0)[place] = first_mark(m, m.args.starts[m.row] + i);
    if (m.args.kind == kRecurrence) m.marks(tile, 1)[place] = 0.0f;
  }
}

// What a query's lanes, from `first` on, give each token: the sum or the largest of their weights times their factors.
struct QueryWeights {
  const LaneScores& scores;
  std::int64_t first, lanes;
  const float* factors;

  Vec total(std::int64_t tile, int t) const {
    Vec x = splat(0.0f);
    for (std::int64_t lane = 0; lane < lanes; ++lane)
      x = fma(load(scores.at(tile, first + lane) + t), splat(factors[lane]), x);
    return x;
  }
  Vec most(std::int64_t tile, int t) const {
    Vec x = splat(0.0f);
    for (std::int64_t lane = 0; lane < lanes; ++lane)
      x = max(load(scores.at(tile, first + lane) + t) * splat(factors[lane]), x);
    return x;
  }
};

// Tokens that the query does not see have weight 0, which changes no mark.
inline void mark(const MarkedHead& m, const QueryWeights& weights, std::int64_t tokens, float now) {
  const Vec share = splat(1.0f / static_cast<float>(weights.lanes)), alpha = splat(m.args.alpha), time = splat(now);
  for (std::int64_t tile = 0; tile < tiles_of(tokens); ++tile) {
    float* marks = m.marks(tile, 0);
    for (int t = 0; t < scored_end(tokens, tile); t += kWidth) {
      const Vec before = load(marks + t);
      if (m.args.kind == kMass) {
        store(marks + t, fma(weights.total(tile, t), share, before));
        continue;
      }
      float* interval = marks + kTileTokens + t;
      const Vec weight = weights.most(tile, t), old = load(interval);
      store(interval, where_less(weight, alpha, old, max(old, time - before)));
      store(marks + t, where_less(weight, alpha, before, time));
    }
  }
}

void mark_head(const MarkTokensArgs& a, std::int64_t row, std::int64_t head, float* scratch) {
  const MarkedHead m{a, row, head};
  begin_marks(m);
  if (a.kind == kGiven) return;  // queries change nothing
  const std::int64_t group = a.group_size(), step = a.queries_together(kMaxLanes), dim = a.stored.head_dim;
  const std::int64_t held = a.stored.held(row, head), fresh = a.fresh(row), lanes = larger(kMarkLanes, group);
  float* scores_at = scratch + lanes * dim;
  for (std::int64_t i = 0; i < fresh; i += step) {
    const std::int64_t count = smaller(step, fresh - i), tokens = held + i + count, token = a.starts[row] + i;
    const LaneScores scores{scores_at, count * group};
    const auto query = [&](std::int64_t lane) {
      return a.query + ((token + lane / group) * a.query_heads + head * group + lane % group) * dim;
    };
    const LogitScale logits{a.scale, a.softcap};
    pack_queries(LaneBlocks(count * group), dim, logits.query_factor(), query, scratch);
    if (a.kv_bits == 32)
      score_tokens<float>(a.stored, a.stored.tile_ids(row, head), tokens, scratch, scores);
    else
      score_tokens<Half>(a.stored, a.stored.tile_ids(row, head), tokens, scratch, scores);
    for (std::int64_t q = 0; q < count; ++q) {
      float* factors = scratch;  // the packed queries are used up
      for (std::int64_t lane = 0; lane < group; ++lane)
        factors[lane] = weigh_lane(scores, q * group + lane, tokens, held + i + q + 1, a.softcap,
                                   a.sinks ? a.sinks + head * group + lane : nullptr);
      mark(m, {scores, q * group, group, factors}, tokens, static_cast<float>(a.positions[token + q]));
    }
  }
}

}  // namespace

EW_DEFINE_CPU_KERNEL(mark_tokens_kernel, mark_head);

}  // namespace ew
