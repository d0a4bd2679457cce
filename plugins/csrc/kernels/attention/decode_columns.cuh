// The eight columns of decoding's products: pairs of a new token and a query head of one KV head's group.
//
// A column's number in its row is query * group + head of the group. A block of threads takes eight columns at a time,
// the N of mma. With g = lane / 4 and i = lane % 4, a lane has columns 2 i and 2 i + 1 of every product.
#pragma once

#include "kernels/attention/attention.cuh"

namespace ew {

constexpr int kColumns = 8;
constexpr int kSlab = 16;                           // tokens or channels of one mma's M or K
constexpr int kTileSlabs = kTileTokens / kSlab;     // token slabs of a tile
constexpr int kFragmentBytes = 8 * kWarp;           // of one mma's B: two words a lane
constexpr float kNothing = -__builtin_huge_valf();  // -infinity: the maximum of no logits

EW_DEVICE int fragment_row() { return lane_index() / 4; }
EW_DEVICE int fragment_pair() { return lane_index() % 4; }

// The tokens that columns see: `span` of them, up to `last`. `last`: of this lane's two columns; `last_last`: of the
// block's last one.
struct Columns {
  int last[2], last_last;
  unsigned span;

  EW_DEVICE Columns(const AttentionView& view, const RowTokens& tokens, int begin)
      : span(view.window > 0 ? static_cast<unsigned>(view.window) : 0x7fffffffu) {
    const int group = view.group();
    EW_UNROLL
    for (int c = 0; c < 2; ++c) last[c] = last_of(tokens, group, begin + 2 * fragment_pair() + c);
    last_last = last_of(tokens, group, begin + kColumns - 1);
  }
  // Columns beyond the row's are like its last ones: computed, and never stored.
  EW_DEVICE static int last_of(const RowTokens& tokens, int group, int column) {
    const int query = column / group;
    return tokens.held + (query < tokens.count ? query : tokens.count - 1);
  }
  EW_DEVICE bool sees(int column, int token) const { return static_cast<unsigned>(last[column] - token) < span; }
  // True where all columns see token `from`, and so every token after it that all queries have before them.
  EW_DEVICE bool see_since(int from) const { return static_cast<unsigned>(last_last - from) < span; }
};

// A warp's results for its columns so far: the largest logit, and sums over this lane's tokens alone of 2^(logit -
// maximum); output[m]: rows g and g + 8 of slab m of channels, which are the channels that a source's fragments have.
template <int kDim>
struct Running {
  float maximum[2], sum[2], output[kDim / kSlab][4];

  EW_DEVICE Running() {
    EW_UNROLL
    for (int c = 0; c < 2; ++c) {
      maximum[c] = kNothing;
      sum[c] = 0.0f;
    }
    EW_UNROLL
    for (int m = 0; m < kDim / kSlab; ++m) {
      EW_UNROLL
      for (int e = 0; e < 4; ++e) output[m][e] = 0.0f;
    }
  }
};

// Scores of slabs of tokens: [m][2 r + c] is column 2 i + c of row g + 8 r of slab m.
template <int kSlabs>
using Scores = float[kSlabs][4];

// Over the lanes that hold the same columns.
EW_DEVICE float column_sum(float x) {
  EW_UNROLL
  for (int mask = 4; mask < kWarp; mask *= 2) x += shuffle_xor(x, mask);
  return x;
}

EW_DEVICE float column_max(float x) {
  EW_UNROLL
  for (int mask = 4; mask < kWarp; mask *= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

// Scores become weights 2^(score - maximum). fade[c]: what sums so far are to be multiplied by; `sum` has been.
template <int kSlabs, int kDim>
EW_DEVICE void weigh(float (&s)[kSlabs][4], Running<kDim>& running, float (&fade)[2]) {
  EW_UNROLL
  for (int c = 0; c < 2; ++c) {
    float top = kNothing;
    EW_UNROLL
    for (int m = 0; m < kSlabs; ++m) top = fmaxf(top, fmaxf(s[m][c], s[m][2 + c]));
    top = fmaxf(running.maximum[c], column_max(top));
    const float base = top == kNothing ? 0.0f : top;  // nothing seen yet: -infinity less itself would be NaN
    fade[c] = fast_exp2(running.maximum[c] - base);
    running.maximum[c] = top;
    float sum = 0.0f;
    EW_UNROLL
    for (int m = 0; m < kSlabs; ++m) {
      EW_UNROLL
      for (int r = 0; r < 2; ++r) {
        const float weight = fast_exp2(s[m][2 * r + c] - base);
        s[m][2 * r + c] = weight;
        sum += weight;
      }
    }
    running.sum[c] = running.sum[c] * fade[c] + sum;
  }
}

// The B of slab `slab`, which a lane left as two words at its own place.
EW_DEVICE void load_fragment(std::uint32_t (&b)[2], const unsigned char* fragments, int slab) {
  const Words2 w = *reinterpret_cast<const Words2*>(fragments + slab * kFragmentBytes + 8 * lane_index());
  b[0] = w.x[0];
  b[1] = w.x[1];
}

}  // namespace ew
