// The redundancy of the tokens of one row and KV head. Include simd.h first.
//
// Of unit keys u, token j's is the mean of u_i . u_j over all i other than j, without the pairs (i, with_i) that each
// key i drops. So the sum over i is u_j . (sum of all u) - u_j . u_j - the dropped ones, and no matrix of all pairs is
// needed.
#pragma once

#include "cpu/attention/microkernels.h"
#include "cpu/attention/softmax.h"
#include "cpu/policy/probabilities.h"
#include "cpu/policy/token_scores.h"

namespace ew {
namespace {

template <class Elem>
inline const Elem* keys_of(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, std::int64_t tile) {
  return reinterpret_cast<const Elem*>(a.stored.tiles + a.stored.tile_ids(row, head)[tile] * a.stored.tile_bytes);
}

// Call body(j, n, keys) for tokens [j, j + n) of a head, n being kWidth but for the last; keys + d * kBlockTokens are
// their numbers of dimension d.
template <class Elem, class Body>
inline void for_tokens(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, Body body) {
  const std::int64_t held = a.stored.held(row, head);
  for (std::int64_t j = 0; j < held; j += kWidth)
    body(
        j, static_cast<int>(smaller(kWidth, held - j)),
        keys_of<Elem>(a, row, head, j / kTileTokens) + key_offset(j % kTileTokens, std::int64_t{0}, a.stored.head_dim));
}

template <class Elem>
inline Vec load_some(const Elem* p, int n) {
  return n == kWidth ? load(p) : load_part(p, n);
}

// total = step(d, total) for all dimensions, in four sums that do not wait for each other.
template <class Step>
inline Vec sum_dimensions(std::int64_t dim, Step step) {
  Vec sums[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  std::int64_t d = 0;
  for (; d + 4 <= dim; d += 4)
    for (int i = 0; i < 4; ++i) sums[i] = step(d + i, sums[i]);
  for (; d < dim; ++d) sums[0] = step(d, sums[0]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class Elem>
void find_unit_keys(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, const Similarity& s) {
  const std::int64_t dim = a.stored.head_dim;
  for (std::int64_t j = 0; j < a.padded(); ++j) s.inverse[j] = 1.0f;
  for (std::int64_t d = 0; d < dim; ++d) s.sum[d] = 0.0f;
  for_tokens<Elem>(a, row, head, [&](std::int64_t j, int n, const Elem* keys) {
    const Vec squares = sum_dimensions(dim, [&](std::int64_t d, Vec total) {
      const Vec k = load_some(keys + d * kBlockTokens, n);
      return fma(k, k, total);
    });
    const Vec inverse = splat(1.0f) / (sqrt(squares) + splat(1e-8f));
    store_part(s.inverse + j, inverse, n);
    store(s.own + j, squares * inverse * inverse);
  });
  const std::int64_t held = a.stored.held(row, head);
  for (std::int64_t tile = 0; tile < tiles_of(held); ++tile) {
    const Elem* keys = keys_of<Elem>(a, row, head, tile);
    const std::int64_t count = smaller(held - tile * kTileTokens, kTileTokens);
    for (std::int64_t d = 0; d < dim; ++d) {
      Vec total = splat(0.0f);
      for (std::int64_t t = 0; t < count; t += kWidth) {
        const Vec k = load_some(keys + key_offset(t, d, dim), static_cast<int>(smaller(kWidth, count - t)));
        total = fma(k, load(s.inverse + tile * kTileTokens + t), total);
      }
      s.sum[d] += sum(total);
    }
  }
}

// unit[dim, count]: unit keys of some tokens.
template <class Elem>
void pack_unit_keys(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, const Similarity& s,
                    const std::int64_t* tokens, int count, float* unit) {
  const std::int64_t dim = a.stored.head_dim;
  for (int r = 0; r < count; ++r) {
    const std::int64_t token = tokens[r];
    const Elem* from = keys_of<Elem>(a, row, head, token / kTileTokens) + key_offset(token % kTileTokens, 0, dim);
    const Vec inverse = splat(s.inverse[token]);
    for (std::int64_t d = 0; d < dim; ++d)
      store_part(unit + d * count + r, load_part(from + d * kBlockTokens, 1) * inverse, 1);
  }
}

// The newest tokens of a head. Most keys are like one of them, so these are compared first, with many keys at once.
struct Newest {
  std::int64_t tokens[kMaxLanes];
  int count;

  explicit Newest(std::int64_t held) : count(static_cast<int>(smaller(kMaxLanes, held))) {
    for (int r = 0; r < count; ++r) tokens[r] = held - count + r;
  }
};

// Find the newest token that keys [begin, end) are like; with = -1 where there is none. unit and scores are scratch.
template <class Elem>
void look_at_newest(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, std::int64_t begin, std::int64_t end,
                    const Newest& newest, const Similarity& s, float* unit, float* scores) {
  const auto score = tile_kernels<Elem>(newest.count).score;
  pack_unit_keys<Elem>(a, row, head, s, newest.tokens, newest.count, unit);
  for (std::int64_t base = begin / kTileTokens * kTileTokens; base < end; base += kTileTokens) {
    const Elem* keys = keys_of<Elem>(a, row, head, base / kTileTokens);
    const int from = static_cast<int>(larger(begin - base, 0)), to = static_cast<int>(smaller(end - base, kTileTokens));
    int first = from, last = to;
    score(unit, keys, a.stored.head_dim, &first, &last, scores, keys);
    for (int r = 0; r < newest.count; ++r)  // none is compared with itself
      if (const std::int64_t t = newest.tokens[r] - base; t >= from && t < to) scores[r * kTileTokens + t] = kMasked;
    for (int t = from; t < to; t += kWidth) {
      const Vec inverse = load(s.inverse + base + t), threshold = splat(a.threshold);
      Vec lane = splat(-1.0f), cosine = splat(0.0f);
      for (int r = 0; r < newest.count; ++r) {
        const Vec c = load(scores + r * kTileTokens + t) * inverse;
        lane = where_less(threshold, c, splat(static_cast<float>(r)), lane);
        cosine = where_less(threshold, c, c, cosine);
      }
      float lanes[kWidth];
      store(lanes, lane);
      store(s.dropped + base + t, cosine);
      for (int i = 0; i < kWidth; ++i)
        s.with[base + t + i] =
            lanes[i] < 0.0f ? -1 : static_cast<std::int32_t>(newest.tokens[0]) + static_cast<std::int32_t>(lanes[i]);
    }
  }
}

// Some keys, each of which looks for the last other key that is like it.
struct LookingKeys {
  const TokenScoresArgs& args;
  const Similarity& found;
  const std::int64_t* tokens;
  int count, open;  // open: those that have found none yet

  // Let each open key look through tokens [begin, end) of the tile at `base`, the last ones first, but not from `limit`
  // on; scores[count, kTileTokens]: products with their keys, which become cosines.
  void look(std::int64_t base, int begin, int end, std::int64_t limit, float* scores) {
    for (int r = 0; r < count; ++r) {
      if (found.with[tokens[r]] >= 0) continue;
      float* cosines = scores + r * kTileTokens;
      for (std::int64_t t = larger(limit - base, begin); t < end; ++t) cosines[t] = kMasked;
      const std::int64_t itself = tokens[r] - base;
      if (itself >= begin && itself < end) cosines[itself] = kMasked;
      for (int t = end - kWidth; t >= begin && found.with[tokens[r]] < 0; t -= kWidth) {
        const Vec c = load(cosines + t) * load(found.inverse + base + t);
        store(cosines + t, c);
        if (largest(c) > args.threshold) take_last(tokens[r], base + t, cosines + t);
      }
    }
  }

  // Note for a key the last of the cosines [kWidth] above the threshold, those of the tokens from `first` on.
  void take_last(std::int64_t key, std::int64_t first, const float* cosines) {
    int i = kWidth - 1;
    while (!(cosines[i] > args.threshold)) --i;
    found.with[key] = static_cast<std::int32_t>(first + i);
    found.dropped[key] = cosines[i];
    --open;
  }
};

// The keys of some tokens, which are like none of the newest, against all others before those; unit and scores are
// scratch.
template <class Elem>
void look_at_others(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, const std::int64_t* tokens,
                    int count, const Newest& newest, const Similarity& s, float* unit, float* scores) {
  const std::int64_t limit = larger(newest.tokens[0], 1);  // key 0 is wanted in any case
  pack_unit_keys<Elem>(a, row, head, s, tokens, count, unit);
  LookingKeys looking{a, s, tokens, count, count};
  const auto score = tile_kernels<Elem>(count).score;
  const int step = columns(count) * kWidth;
  for (std::int64_t tile = tiles_of(limit) - 1; tile >= 0 && looking.open > 0; --tile) {
    const Elem* keys = keys_of<Elem>(a, row, head, tile);
    int begin = static_cast<int>((smaller(limit - tile * kTileTokens, kTileTokens) + step - 1) / step * step);
    while (begin > 0 && looking.open > 0) {
      int end = begin;
      begin -= step;
      score(unit, keys, a.stored.head_dim, &begin, &end, scores, keys);
      looking.look(tile * kTileTokens, begin, end, limit, scores);
    }
  }
  for (int r = 0; r < count; ++r)
    if (s.with[tokens[r]] < 0) {  // then key 0 is dropped; `scores` ends with the first tokens
      s.with[tokens[r]] = 0;
      s.dropped[tokens[r]] = tokens[r] == 0 ? 0.0f : scores[r * kTileTokens];
    }
}

template <class Elem>
void find_dropped_as(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, std::int64_t begin,
                     std::int64_t end, const Similarity& s, float* scratch) {
  float* scores = scratch + kScoreLanes * a.stored.head_dim;
  const Newest newest(a.stored.held(row, head));
  look_at_newest<Elem>(a, row, head, begin, end, newest, s, scratch, scores);
  std::int64_t open[kMaxLanes];
  int count = 0;
  for (std::int64_t token = begin; token < end; ++token) {
    if (s.with[token] < 0) open[count++] = token;
    if (count < kMaxLanes && token + 1 < end) continue;
    if (count > 0) look_at_others<Elem>(a, row, head, open, count, newest, s, scratch, scores);
    count = 0;
  }
}

template <class Elem>
void find_redundancy_as(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, const Similarity& s) {
  const std::int64_t dim = a.stored.head_dim, held = a.stored.held(row, head), scored = a.scored(row, head);
  float* out = a.similar + (row * a.kv_heads + head) * a.padded();
  for_tokens<Elem>(a, row, head, [&](std::int64_t j, int n, const Elem* keys) {
    const Vec total = sum_dimensions(
        dim, [&](std::int64_t d, Vec sum) { return fma(load_some(keys + d * kBlockTokens, n), splat(s.sum[d]), sum); });
    store(out + j, total * load(s.inverse + j) - load(s.own + j));
  });
  for (std::int64_t i = 0; i < held; ++i) out[s.with[i]] -= s.dropped[i];
  float top = kMasked;
  for (std::int64_t j = 0; j < held; ++j) {
    out[j] /= static_cast<float>(held);
    top = out[j] > top ? out[j] : top;
  }
  const std::int64_t end = (held + kWidth - 1) / kWidth * kWidth;
  for (std::int64_t j = held; j < end; ++j) out[j] = kMasked;
  float total = 0.0f;
  for (std::int64_t j = 0; j < end; j += kTileTokens)
    total += weights_from_scores(out + j, 0, static_cast<int>(smaller(kTileTokens, end - j)), top);
  for (std::int64_t j = 0; j < end; ++j) out[j] = j < scored ? out[j] / total : 0.0f;
}

}  // namespace
}  // namespace ew
