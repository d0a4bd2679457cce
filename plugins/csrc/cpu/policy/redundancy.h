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

template <class Elem>
void find_unit_keys(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, const Similarity& s) {
  const std::int64_t dim = a.stored.head_dim;
  for (std::int64_t j = 0; j < a.padded(); ++j) s.inverse[j] = 1.0f;
  for (std::int64_t d = 0; d < dim; ++d) s.sum[d] = 0.0f;
  for_tokens<Elem>(a, row, head, [&](std::int64_t j, int n, const Elem* keys) {
    Vec squares = splat(0.0f);
    for (std::int64_t d = 0; d < dim; ++d) {
      const Vec k = load_some(keys + d * kBlockTokens, n);
      squares = fma(k, k, squares);
    }
    const Vec inverse = splat(1.0f) / (sqrt(squares) + splat(1e-8f));
    store_part(s.inverse + j, inverse, n);
    store(s.own + j, squares * inverse * inverse);
    for (std::int64_t d = 0; d < dim; ++d) s.sum[d] += sum(load_some(keys + d * kBlockTokens, n) * inverse);
  });
}

// The keys [first, first + lanes), which lie in one block of a tile, against all; unit and scores are scratch.
template <class Elem>
void drop_of_lanes(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, std::int64_t first, int lanes,
                   const Similarity& s, float* unit, float* scores) {
  const std::int64_t dim = a.stored.head_dim, held = a.stored.held(row, head);
  const Elem* own =
      keys_of<Elem>(a, row, head, first / kTileTokens) + key_offset(first % kTileTokens, std::int64_t{0}, dim);
  for (std::int64_t d = 0; d < dim; ++d)
    store_part(unit + d * lanes, load_part(own + d * kBlockTokens, lanes) * load_part(s.inverse + first, lanes), lanes);
  int open = lanes;  // lanes that have found none yet
  for (int r = 0; r < lanes; ++r) s.with[first + r] = -1;
  for (std::int64_t tile = tiles_of(held) - 1; tile >= 0 && open > 0; --tile) {
    const std::int64_t base = tile * kTileTokens;
    const Elem* next = keys_of<Elem>(a, row, head, tile > 0 ? tile - 1 : 0);
    int begin = 0, end = scored_end(held, tile);
    tile_kernels<Elem>(lanes).score(unit, keys_of<Elem>(a, row, head, tile), dim, &begin, &end, scores, next);
    for (int r = 0; r < lanes; ++r) {
      if (s.with[first + r] >= 0) continue;
      float* cosines = scores + r * kTileTokens;
      for (std::int64_t t = smaller(held - base, end); t < end; ++t) cosines[t] = kMasked;
      if (first + r >= base && first + r < base + end) cosines[first + r - base] = kMasked;  // not with itself
      for (int t = end - kWidth; t >= 0 && s.with[first + r] < 0; t -= kWidth) {
        const Vec c = load(cosines + t) * load(s.inverse + base + t);
        store(cosines + t, c);
        if (!(largest(c) > a.threshold)) continue;
        for (int i = kWidth - 1; i >= 0 && s.with[first + r] < 0; --i)
          if (cosines[t + i] > a.threshold) {
            s.with[first + r] = static_cast<std::int32_t>(base + t + i);
            s.dropped[first + r] = cosines[t + i];
            --open;
          }
      }
    }
  }
  for (int r = 0; r < lanes; ++r)
    if (s.with[first + r] < 0) {  // then key 0 is dropped; `scores` is that of the first tile
      s.with[first + r] = 0;
      s.dropped[first + r] = first + r == 0 ? 0.0f : scores[r * kTileTokens];
    }
}

template <class Elem>
void find_dropped_as(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, std::int64_t begin,
                     std::int64_t end, const Similarity& s, float* scratch) {
  float* scores = scratch + kScoreLanes * a.stored.head_dim;
  for (std::int64_t first = begin; first < end; first += kMaxLanes)
    drop_of_lanes<Elem>(a, row, head, first, static_cast<int>(smaller(kMaxLanes, end - first)), s, scratch, scores);
}

template <class Elem>
void find_redundancy_as(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, const Similarity& s) {
  const std::int64_t dim = a.stored.head_dim, held = a.stored.held(row, head), scored = a.scored(row, head);
  float* out = a.similar + (row * a.kv_heads + head) * a.padded();
  for_tokens<Elem>(a, row, head, [&](std::int64_t j, int n, const Elem* keys) {
    Vec total = splat(0.0f);
    for (std::int64_t d = 0; d < dim; ++d) total = fma(load_some(keys + d * kBlockTokens, n), splat(s.sum[d]), total);
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
