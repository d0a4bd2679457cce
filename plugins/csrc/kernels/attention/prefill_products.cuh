// The two products of prefill on tensor cores and the softmax between them, for one warp: 16 (query, head) pairs by a
// block of tokens.
//
// The warp's queries stay in registers as first operands, 16 channels each; keys and values are second operands from
// shared memory (prefill_tile.cuh). With g = lane / 4 and i = lane % 4, a lane has for the pairs g and g + 8: logits of
// tokens 8 n + 2 i and 8 n + 2 i + 1, and sums of channels 8 n + 2 i and 8 n + 2 i + 1. Weights become first operands
// in the registers where they are.
#pragma once

#include "kernels/attention/prefill_blocks.cuh"

namespace ew {

// The first token that a query which sees the tokens up to `high` also sees.
EW_DEVICE int low_of(const AttentionView& view, int high) {
  return view.window > 0 && high > view.window ? high - view.window : 0;
}

// Two (query, head) pairs of a lane, g and g + 8 of its warp.
struct PairPlaces {
  int query[2], head[2];  // of the row; of all query heads

  // The places of two of `lanes` pairs, counted from `first`; pairs beyond the last one repeat it.
  EW_DEVICE PairPlaces(const AttentionView& view, int kv_head, int first, int lanes) {
    EW_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int wanted = first + lane_index() / 4 + 8 * i, lane = wanted < lanes ? wanted : lanes - 1;
      query[i] = lane / view.group();
      head[i] = kv_head * view.group() + lane % view.group();
    }
  }
  // The place of a pair's query and output, in heads.
  EW_DEVICE std::int64_t operator()(const AttentionView& view, const RowTokens& row, int i) const {
    return static_cast<std::int64_t>(row.start + query[i]) * view.query_heads + head[i];
  }
};

// The tokens that a lane's pairs see: those below `high`. All else follows from it, as registers are few.
struct PairSight {
  int high[2];  // of the lane's pairs, which rise from lane 0's first to lane 31's second

  // A warp without pairs sees nothing.
  EW_DEVICE PairSight(const RowTokens& row, const PairPlaces& pairs, bool is_idle) {
    EW_UNROLL
    for (int i = 0; i < 2; ++i) high[i] = is_idle ? 0 : row.held + pairs.query[i] + 1;
  }
  // Some pair of the warp sees some of the block; or all pairs see all of it.
  template <class Shape>
  EW_DEVICE bool is_some(const AttentionView& view, const TokenBlock& block) const {
    const int first = shuffle(high[0], 0), last = shuffle(high[1], kWarp - 1);
    return block.begin < last && block.begin + Shape::tokens > low_of(view, first);
  }
  template <class Shape>
  EW_DEVICE bool is_all(const AttentionView& view, const TokenBlock& block) const {
    const int first = shuffle(high[0], 0), last = shuffle(high[1], kWarp - 1), end = block.begin + Shape::tokens;
    return block.begin >= low_of(view, last) && end <= first && (!Shape::has_records || end <= block.end);
  }
};

// A warp's results for its pairs so far: sums before normalisation, the largest logit, and this lane's share of the
// denominator.
template <class Shape>
struct WarpSums {
  float sums[Shape::value_dim / 8][4] = {};
  float maximum[2] = {-kNothing, -kNothing}, denominator[2] = {};

  static constexpr float kNothing = __builtin_huge_valf();
};

template <class Shape>
using QueryOperands = std::uint32_t[Shape::dim / 16][4];

template <class Shape>
using Logits = float[Shape::tokens / 8][4];

template <class Shape>
EW_DEVICE void load_queries(const AttentionView& view, const RowTokens& row, const PairPlaces& pairs,
                            QueryOperands<Shape>& to) {
  EW_UNROLL
  for (int i = 0; i < 2; ++i) {
    const std::uint16_t* query = view.query + pairs(view, row, i) * Shape::dim;
    const auto* words = reinterpret_cast<const std::uint32_t*>(query) + lane_index() % 4;
    EW_UNROLL
    for (int k = 0; k < Shape::dim / 16; ++k) {
      to[k][i] = words[8 * k];
      to[k][i + 2] = words[8 * k + 4];
    }
  }
}

// c[16, 16] += a[16, 16] b[16, 16], the halves of b's 16 columns being b[0], b[1] and b[2], b[3].
EW_DEVICE void multiply(float (&low)[4], float (&high)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[4]) {
  const std::uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
  mma_16x8x16(low, a, first);
  mma_16x8x16(high, a, second);
}

// logits[pair, token] = query . key. kOfTile: keys are [tokens / 16][dim][16], otherwise [tokens][dim].
template <class Shape, bool kOfTile>
EW_DEVICE void multiply_keys(const QueryOperands<Shape>& queries, const unsigned char* keys, Logits<Shape>& logits) {
  constexpr int kRow = Shape::dim / kChunk;
  const int row = lane_index() % 8, matrix = lane_index() / 8;  // matrices: channels + 0, + 8; tokens + 0, + 8
  const int channel = matrix % 2 * 8 + row, token = matrix / 2 * 8 + row;
  EW_UNROLL
  for (int n = 0; n < Shape::tokens / 8; ++n) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e) logits[n][e] = 0.0f;
  }
  EW_UNROLL
  for (int k = 0; k < Shape::dim / 16; ++k) {
    EW_UNROLL
    for (int n = 0; n < Shape::tokens / 16; ++n) {
      std::uint32_t b[4];
      if constexpr (kOfTile)
        load_matrices_transposed(b, keys + 16 * (swizzled<2>(channel, matrix / 2) + n * 2 * Shape::dim + k * 32));
      else
        load_matrices(b, keys + 16 * (swizzled<kRow>(token, 2 * k, matrix % 2) + n * 16 * kRow));
      multiply(logits[2 * n], logits[2 * n + 1], queries[k], b);
    }
  }
}

// sums[pair, channel] += weight . value.
template <class Shape>
EW_DEVICE void multiply_values(const Logits<Shape>& weights, const unsigned char* values, WarpSums<Shape>& state) {
  constexpr int kRow = Shape::value_dim / kChunk;
  const int row = lane_index() % 8, matrix = lane_index() / 8;  // matrices: tokens + 0, + 8; channels + 0, + 8
  const int token = matrix % 2 * 8 + row;
  EW_UNROLL
  for (int k = 0; k < Shape::tokens / 16; ++k) {
    const float (&low)[4] = weights[2 * k], (&high)[4] = weights[2 * k + 1];
    const std::uint32_t a[4] = {pack_half2(low[0], low[1]), pack_half2(low[2], low[3]), pack_half2(high[0], high[1]),
                                pack_half2(high[2], high[3])};
    EW_UNROLL
    for (int n = 0; n < Shape::value_dim / 16; ++n) {
      std::uint32_t b[4];
      load_matrices_transposed(b, values + 16 * (swizzled<kRow>(token, 2 * n, matrix / 2) + k * 16 * kRow));
      multiply(state.sums[2 * n], state.sums[2 * n + 1], a, b);
    }
  }
}

// Logits of tokens that a pair does not see, or that are not there, become minus infinity, whatever they are.
template <class Shape>
EW_DEVICE void mask(const AttentionView& view, const PairSight& sight, const TokenBlock& block, Logits<Shape>& logits) {
  EW_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int begin = block.begin + 2 * (lane_index() % 4);  // of the lane's tokens
    const int low = low_of(view, sight.high[i]) - begin;
    const int end = Shape::has_records && block.end < sight.high[i] ? block.end : sight.high[i], high = end - begin;
    EW_UNROLL
    for (int n = 0; n < Shape::tokens / 8; ++n) {
      EW_UNROLL
      for (int e = 0; e < 2; ++e) {
        float& logit = logits[n][2 * i + e];
        logit = 8 * n + e >= low && 8 * n + e < high ? logit : -WarpSums<Shape>::kNothing;
      }
    }
  }
}

// The largest logits so far; the sums so far shrink to them.
template <class Shape>
EW_DEVICE void raise_maxima(const Logits<Shape>& logits, WarpSums<Shape>& state) {
  float factor[2];
  EW_UNROLL
  for (int i = 0; i < 2; ++i) {
    float largest = logits[0][2 * i];
    EW_UNROLL
    for (int n = 0; n < Shape::tokens / 8; ++n) {
      EW_UNROLL
      for (int e = 2 * i; e < 2 * i + 2; ++e) largest = logits[n][e] > largest ? logits[n][e] : largest;
    }
    largest = warp_max<4>(largest);
    const float before = state.maximum[i];
    const bool is_larger = largest > before;
    factor[i] = is_larger ? fast_exp2(before - largest) : 1.0f;
    state.maximum[i] = is_larger ? largest : before;
    state.denominator[i] *= factor[i];
  }
  if (ballot(factor[0] != 1.0f || factor[1] != 1.0f) == 0) return;  // maxima settle early
  EW_UNROLL
  for (int n = 0; n < Shape::value_dim / 8; ++n) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e) state.sums[n][e] *= factor[e / 2];
  }
}

// Logits become weights, 1 for the largest so far.
template <class Shape>
EW_DEVICE void weigh(Logits<Shape>& logits, WarpSums<Shape>& state) {
  raise_maxima<Shape>(logits, state);
  float base[2];  // a pair that has seen nothing yet: all its logits are -infinity
  EW_UNROLL
  for (int i = 0; i < 2; ++i) base[i] = state.maximum[i] > -WarpSums<Shape>::kNothing ? state.maximum[i] : 0.0f;
  EW_UNROLL
  for (int n = 0; n < Shape::tokens / 8; ++n) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e) {
      logits[n][e] = fast_exp2(logits[n][e] - base[e / 2]);
      state.denominator[e / 2] += logits[n][e];
    }
  }
}

// Adds a block of tokens in shared memory to what the warp has.
template <class Shape>
EW_DEVICE void attend(const AttentionView& view, const PairSight& sight, const QueryOperands<Shape>& queries,
                      const TokenBlock& block, const unsigned char* memory, WarpSums<Shape>& state) {
  if (!sight.is_some<Shape>(view, block)) return;
  Logits<Shape> logits;
  if (Shape::has_records && block.is_fresh)
    multiply_keys<Shape, false>(queries, memory, logits);
  else
    multiply_keys<Shape, true>(queries, memory, logits);
  if (view.softcap > 0.0f) {
    EW_UNROLL
    for (int n = 0; n < Shape::tokens / 8; ++n) {
      EW_UNROLL
      for (int e = 0; e < 4; ++e) logits[n][e] = logit_of(view, logits[n][e]);
    }
  }
  if (!sight.is_all<Shape>(view, block)) mask<Shape>(view, sight, block, logits);
  weigh<Shape>(logits, state);
  multiply_values<Shape>(logits, memory + Shape::key_bytes, state);
}

}  // namespace ew
