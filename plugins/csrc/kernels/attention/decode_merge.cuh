// Merges the results of a decoding block's warps into one part.
#pragma once

#include "kernels/attention/decode_columns.cuh"

namespace ew {

// The place of a lane's outputs among a head's channels: row g + 8 r of slab m.
struct PlainChannels {  // of tiles of halves: slabs of 16 channels
  template <int kDim>
  EW_DEVICE static int at(int m, int r) {
    return kSlab * m + fragment_row() + 8 * r;
  }
};
struct OwnChannels {  // of records: lane / 4 has neighbouring channels
  template <int kDim>
  EW_DEVICE static int at(int m, int r) {
    return kDim / 8 * fragment_row() + 2 * m + r;
  }
};

// Outputs of the eight columns in shared memory, floats [column][kDim + 4]: rows start in different banks.
template <int kDim>
struct OutputTable {
  static constexpr int row_floats = kDim + 4;
  static constexpr int bytes = 4 * kColumns * row_floats;
};

template <class Channels, int kDim>
EW_DEVICE void store_outputs(float* table, const Running<kDim>& running) {
  EW_UNROLL
  for (int m = 0; m < kDim / kSlab; ++m) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int column = 2 * fragment_pair() + e % 2;
      table[column * OutputTable<kDim>::row_floats + Channels::template at<kDim>(m, e / 2)] = running.output[m][e];
    }
  }
}

// Each warp's maximum and denominator of each column, before the block's barrier.
template <int kDim>
EW_DEVICE void store_denominators(float* table, const Running<kDim>& running) {
  EW_UNROLL
  for (int c = 0; c < 2; ++c) {
    const float sum = column_sum(running.sum[c]);
    if (fragment_row() != 0) continue;
    float* to = table + 2 * (kColumns * warp_index() + 2 * fragment_pair() + c);
    to[0] = running.maximum[c];
    to[1] = sum;
  }
}

// The results of a block's warps for one column, merged.
template <int kWarps>
struct Merged {
  float maximum, denominator, factors[kWarps];

  EW_DEVICE Merged(const float* denominators, int column) : maximum(kNothing), denominator(0.0f) {
    EW_UNROLL
    for (int w = 0; w < kWarps; ++w) maximum = fmaxf(maximum, denominators[2 * (kColumns * w + column)]);
    const float base = maximum == kNothing ? 0.0f : maximum;
    EW_UNROLL
    for (int w = 0; w < kWarps; ++w) {
      const float* one = denominators + 2 * (kColumns * w + column);
      factors[w] = fast_exp2(one[0] - base);
      denominator += factors[w] * one[1];
    }
  }
};

// Writes a part's columns begin + [0, 8) of one row and KV head, as far as the row has them. outputs: the first of the
// warps' tables, `stride` floats apart.
template <int kDim, int kWarps>
EW_DEVICE void write_part(const AttentionView& view, const RowTokens& tokens, const DecodeParts& parts, int part,
                          int begin, const float* outputs, int stride, const float* denominators) {
  const int group = view.group(), columns = tokens.count * group - begin;
  for (int column = warp_index(); column < kColumns && column < columns; column += kWarps) {
    const Merged<kWarps> merged(denominators, column);
    const int query = (begin + column) / group, head = tokens.head * group + (begin + column) % group;
    const std::int64_t at = parts.lane(view, part, tokens.row, query, head);
    for (int channel = lane_index(); channel < kDim; channel += kWarp) {
      float sum = 0.0f;
      EW_UNROLL
      for (int w = 0; w < kWarps; ++w)
        sum += merged.factors[w] * outputs[w * stride + column * OutputTable<kDim>::row_floats + channel];
      parts.sums[at * kDim + channel] = sum;
    }
    if (lane_index() != 0) continue;
    parts.denominators[2 * at] = merged.maximum;
    parts.denominators[2 * at + 1] = merged.denominator;
  }
}

}  // namespace ew
