// Decoding over KVarN's records: codes become fragments of mma directly in registers.
//
// Stages of the ring, in the order of a tile:
//
//   keys     codes of 16 channels, [channel][128 tokens], with those channels' a and b [16]
//   scales   keys' c [128], values' a [128], b [128]
//   values   codes of 16 tokens, [token][dim]; the last one with values' c [dim]
//
// A row of a fragment may stand for any token or channel, so each lane takes neighbours: with g = lane / 4,
// tokens 16 g to 16 g + 15 of keys (row g + 8 r of slab m: token 16 g + 2 m + r), channels [g, g + 1) dim / 8 of
// values. Lane i = lane % 4 has channels 2 i, 2 i + 1, 2 i + 8 and 2 i + 9 of a slab of keys; the copy therefore places
// the rows so that those of the four lanes do not share a bank. It has tokens i, i + 4, i + 8 and i + 12 of a slab of
// values, which do not share a bank anyway. Weights are stored by the lanes that have tokens 16 g + [0, 16), all of
// slab g of values, as the B of these products.
//
// An element is (code * a[row] + b[row]) * c[column]; with codes less their middle, b is b + middle * a:
//
//   keys     the queries are multiplied by a, q b is one more product, and the scores are multiplied by c
//   values   the weights are multiplied by a, a tile's outputs start from sum(weight b), and are multiplied by c at the
//            end
//
// A tile with four bits of keys and two of values and 128 channels is 13824 bytes and, counted in PTX without moves and
// with `and`, `or` as one, about 2600 instructions of a warp: 8 x 140 of keys (9 mma, 74 from codes to halves, 30 for
// the next copy), 8 x 120 of values (8 mma, 72, 30), 500 between and after them (32 logits a lane, twice 32 outputs).
// An H200's multiprocessor gets 13824 bytes in about 670 cycles, in which it starts at most 2680 instructions: at two
// thirds of that rate, two thirds of the bandwidth.
//
// Registers are scarce: there are 128 for four blocks a multiprocessor, and scores and outputs take 64 of them. Hence
// the copies through shared memory, the words of codes loaded one at a time, and no exact tile in a block with records.
// Nothing is spilled.
#pragma once

#include "kernels/attention/decode_codes.cuh"
#include "kernels/attention/decode_columns.cuh"
#include "kernels/attention/decode_halves.cuh"
#include "kernels/attention/decode_ring.cuh"
#include "kernels/kvarn/kvarn_record.cuh"

namespace ew {

template <int kDim, int kKeyBits, int kValueBits>
struct RecordStage {
  using Layout = RecordLayout<kDim, kKeyBits, kValueBits>;
  static constexpr int key_slabs = kDim / kSlab, slabs = key_slabs + 1 + kTileSlabs;
  static constexpr int key_bytes = kSlab * Layout::key_row_bytes;
  static constexpr int scales_bytes = 6 * kTileTokens;
  static constexpr int value_bytes = kSlab * Layout::value_row_bytes;
  static constexpr int most(int x, int y) { return x > y ? x : y; }
  static constexpr int bytes = most(key_bytes + 4 * kSlab, most(scales_bytes, value_bytes + 2 * kDim));
  static constexpr int value_a = 2 * kTileTokens, value_b = 4 * kTileTokens;  // of the stage of scales
};

// The 16-byte column of a row of keys that lies in column 0: rows 2 i, i = 0 to 3, are read together, and all columns
// of 16 bytes of a stage's 128 have to differ.
template <int kKeyBits>
EW_DEVICE int key_shift(int i) {
  return kKeyBits == 2 ? 0 : kKeyBits == 4 ? (i & 2) : 2 * i;
}

// Copies the records tile, tile + step, ... below `end`.
template <int kDim, int kKeyBits, int kValueBits>
class RecordSource {
  using Stage = RecordStage<kDim, kKeyBits, kValueBits>;
  using Layout = typename Stage::Layout;

 public:
  EW_DEVICE RecordSource(const AttentionView& view, const RowTokens& tokens, int tile, int end, int step)
      : view_(view), tokens_(tokens), tile_(tile), end_(end), step_(step), slab_(0), id_(0), ahead_(0) {
    if (tile_ < end_) id_ = id(tile_);
    look_ahead();
  }

  EW_DEVICE void copy_next(unsigned char* to) {
    if (tile_ >= end_) return;
    if (slab_ < Stage::key_slabs)
      copy_keys(to);
    else if (slab_ == Stage::key_slabs)
      copy_scales(to);
    else
      copy_values(to, slab_ - Stage::key_slabs - 1);
    if (++slab_ < Stage::slabs) return;
    slab_ = 0;
    tile_ += step_;
    id_ = ahead_;
    look_ahead();
  }

 private:
  // Record ids come from a table: each is read a tile before it is needed.
  EW_DEVICE void look_ahead() {
    if (tile_ + step_ < end_) ahead_ = id(tile_ + step_);
  }
  EW_DEVICE int id(int tile) const {
    return view_.table[static_cast<std::int64_t>(view_.entry(tokens_.row, tokens_.head)) * view_.table_width + tile];
  }
  EW_DEVICE const unsigned char* record() const { return view_.tiles + static_cast<std::int64_t>(id_) * Layout::bytes; }

  // Channel 2 i + e + 8 h of the slab becomes row 4 (2 h + e) + i.
  EW_DEVICE static constexpr int channel_of(int quad) { return quad % 2 + 8 * (quad / 2); }

  EW_DEVICE void copy_keys(unsigned char* to) const {
    constexpr int kColumns16 = kKeyBits, kQuads = 8 / kColumns16;  // columns of 16 bytes; quads of rows in one pass
    const int row = lane_index() / kColumns16, column = lane_index() % kColumns16, i = row % 4;
    const unsigned char* from = record() + slab_ * Stage::key_bytes +
                                (2 * i + channel_of(row / 4)) * Layout::key_row_bytes +
                                16 * (column ^ key_shift<kKeyBits>(i));
    EW_UNROLL
    for (int n = 0; n < 4 * kColumns16 / 8; ++n)
      copy_async_16(to + 16 * (kWarp * n + lane_index()), from + channel_of(kQuads * n) * Layout::key_row_bytes);
    if (lane_index() >= 4) return;
    const int part = lane_index() / 2, half = lane_index() % 2;  // a or b, and which 8 channels
    copy_async_16(to + Stage::key_bytes + 16 * lane_index(),
                  record() + Layout::key_a + 2 * kDim * part + 2 * kSlab * slab_ + 16 * half);
  }

  EW_DEVICE void copy_scales(unsigned char* to) const {
    constexpr int kChunks = Stage::scales_bytes / 16, kKeyChunks = 2 * kTileTokens / 16;
    EW_UNROLL
    for (int n = 0; n < (kChunks + kWarp - 1) / kWarp; ++n) {
      const int chunk = kWarp * n + lane_index();
      if (chunk >= kChunks) break;
      const int from = chunk < kKeyChunks ? Layout::key_c : Layout::value_a - 16 * kKeyChunks;
      copy_async_16(to + 16 * chunk, record() + from + 16 * chunk);
    }
  }

  EW_DEVICE void copy_values(unsigned char* to, int slab) const {
    constexpr int kChunks = Stage::value_bytes / 16;
    const unsigned char* from = record() + Layout::value_codes + slab * Stage::value_bytes + 16 * lane_index();
    to += 16 * lane_index();
    EW_UNROLL
    for (int n = 0; n < kChunks; n += kWarp)
      if (n + kWarp <= kChunks || n + lane_index() < kChunks) copy_async_16(to + 16 * n, from + 16 * n);
    if (slab == kTileSlabs - 1 && lane_index() < kDim / 8)
      copy_async_16(to + Stage::value_bytes, record() + Layout::value_c + 16 * lane_index());
  }

  const AttentionView& view_;
  const RowTokens& tokens_;
  int tile_, end_, step_, slab_, id_, ahead_;
};

// S^T += K Q^T of one slab of channels; offset: q b of each column, in every row.
template <int kDim, int kKeyBits, int kValueBits>
EW_DEVICE void score_codes(Scores<kTileSlabs>& s, float (&offset)[4], const unsigned char* stage,
                           const unsigned char* queries, int slab) {
  using Stage = RecordStage<kDim, kKeyBits, kValueBits>;
  constexpr int kRowBytes = Stage::Layout::key_row_bytes, kWords = kKeyBits / 2, kCodes = 32 / kKeyBits;
  std::uint32_t q[2], scales[4];
  load_fragment(q, queries, slab);
  load_matrices(scales, stage + Stage::key_bytes + 16 * (lane_index() / 8));  // a: 2 i, 2 i + 8; b: the same
  std::uint32_t b[4], middle = both(half_of_integer(kCodeMiddle<kKeyBits>));
  b[0] = b[1] = half2_fma(scales[0], middle, scales[2]);
  b[2] = b[3] = half2_fma(scales[1], middle, scales[3]);
  mma_16x8x16(offset, b, q);
  q[0] = half2_mul(q[0], scales[0]);
  q[1] = half2_mul(q[1], scales[1]);
  const int g = fragment_row(), i = fragment_pair();
  const unsigned char* codes =
      stage + i * kRowBytes + 16 * (g * kKeyBits / 8 ^ key_shift<kKeyBits>(i)) + 2 * kKeyBits * g % 16;
  EW_UNROLL
  for (int w = 0; w < kWords; ++w) {  // a word at a time: wider loads are fewer, and cost registers that are not there
    if constexpr (kWords > 2) sync_warp();  // no need of lanes, but of registers: one word after another
    std::uint32_t words[4];
    EW_UNROLL
    for (int n = 0; n < 4; ++n) words[n] = *reinterpret_cast<const std::uint32_t*>(codes + 4 * n * kRowBytes + 4 * w);
    std::uint32_t low[kCodes], high[kCodes];  // channels 2 i and 2 i + 1; those 8 further
    expand<kKeyBits>(low, words[0], words[1]);
    expand<kKeyBits>(high, words[2], words[3]);
    EW_UNROLL
    for (int k = 0; k < kCodes; k += 2) {
      const std::uint32_t a[4] = {low[k], low[k + 1], high[k], high[k + 1]};
      mma_16x8x16(s[(kCodes * w + k) / 2], a, q);
    }
  }
}

// O^T += V^T P^T of one slab of tokens.
template <int kDim, int kValueBits>
EW_DEVICE void mix_codes(float (&output)[kDim / kSlab][4], const unsigned char* stage,
                         const std::uint32_t (&weights)[2]) {
  constexpr int kRowBytes = kDim * kValueBits / 8, kBytes = kRowBytes / 8, kCodes = 32 / kValueBits;
  constexpr int kWords = (kBytes + 3) / 4, kUsed = kCodes < kDim / 8 ? kCodes : kDim / 8;
  const unsigned char* codes = stage + fragment_pair() * kRowBytes + fragment_row() * kBytes;
  EW_UNROLL
  for (int w = 0; w < kWords; ++w) {
    if constexpr (kWords > 2) sync_warp();  // as for keys
    std::uint32_t words[4][1];
    EW_UNROLL
    for (int n = 0; n < 4; ++n) load_words<(kBytes < 4 ? kBytes : 4)>(words[n], codes + 4 * n * kRowBytes + 4 * w);
    std::uint32_t low[kCodes], high[kCodes];  // tokens i and i + 4; i + 8 and i + 12
    expand<kValueBits>(low, words[0][0], words[1][0]);
    expand<kValueBits>(high, words[2][0], words[3][0]);
    EW_UNROLL
    for (int k = 0; k < kUsed; k += 2) {
      const std::uint32_t a[4] = {low[k], low[k + 1], high[k], high[k + 1]};
      mma_16x8x16(output[(kCodes * w + k) / 2], a, weights);
    }
  }
}

// Weights times the values' a become the B of slab g of tokens; returns in `offset` the sums of weights times b.
EW_DEVICE void scale_weights(Scores<kTileSlabs>& s, float (&offset)[2], const unsigned char* value_a,
                             const unsigned char* value_b, float middle, unsigned char* weights) {
  std::uint32_t a[8], b[8];
  load_words<32>(a, value_a + 32 * fragment_row());
  load_words<32>(b, value_b + 32 * fragment_row());
  offset[0] = offset[1] = 0.0f;
  EW_UNROLL
  for (int u = 0; u < kSlab; ++u) {
    const float scale = half_in(a, u), from_middle = half_in(b, u) + middle * scale;
    EW_UNROLL
    for (int c = 0; c < 2; ++c) {
      float& weight = s[u / 2][2 * (u % 2) + c];
      offset[c] += weight * from_middle;
      weight *= scale;
    }
  }
  const auto pair = [&s](int u, int c) {
    return pack_half2(s[u / 2][2 * (u % 2) + c], s[u / 2 + 2][2 * (u % 2) + c]);  // tokens u and u + 4
  };
  EW_UNROLL
  for (int c = 0; c < 2; ++c) {
    auto* to = reinterpret_cast<Words4*>(weights + fragment_row() * kFragmentBytes + 32 * (2 * fragment_pair() + c));
    to[0] = Words4{{pair(0, c), pair(8, c), pair(1, c), pair(9, c)}};
    to[1] = Words4{{pair(2, c), pair(10, c), pair(3, c), pair(11, c)}};
    offset[c] = column_sum(offset[c]);
  }
  sync_warp();  // other lanes' weights are read
}

// Scores of a record become logits: tokens 16 g + [0, 16) of the tile that begins with token `first`.
EW_DEVICE void scale_scores(const AttentionView& view, const Columns& columns, int first, const float (&offset)[4],
                            const unsigned char* key_c, Scores<kTileSlabs>& s) {
  std::uint32_t c[8];
  load_words<32>(c, key_c + 32 * fragment_row());
  EW_UNROLL
  for (int m = 0; m < kTileSlabs; ++m) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e) s[m][e] = (s[m][e] + offset[e % 2]) * half_in(c, 2 * m + e / 2);
  }
  if (view.softcap > 0.0f) {
    EW_UNROLL
    for (int m = 0; m < kTileSlabs; ++m) {
      sync_warp();  // no need of lanes, but of registers: the compiler caps one slab after another
      EW_UNROLL
      for (int e = 0; e < 4; ++e) s[m][e] = logit_of(view, s[m][e]);
    }
  }
  if (columns.see_since(first)) return;
  first += kSlab * fragment_row();
  EW_UNROLL
  for (int m = 0; m < kTileSlabs; ++m) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e) s[m][e] = columns.sees(e % 2, first + 2 * m + e / 2) ? s[m][e] : kNothing;
  }
}

template <int kDim, int kKeyBits, int kValueBits, class Stages, class Source>
EW_DEVICE void attend_record(const AttentionView& view, const Columns& columns, const WarpMemory& memory, int tile,
                             Stages& ring, Source& source, Running<kDim>& running) {
  using Stage = RecordStage<kDim, kKeyBits, kValueBits>;
  Scores<kTileSlabs> s;
  EW_UNROLL
  for (int m = 0; m < kTileSlabs; ++m) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e) s[m][e] = 0.0f;
  }
  float offset[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int slab = 0; slab < Stage::key_slabs; ++slab)
    score_codes<kDim, kKeyBits, kValueBits>(s, offset, ring.take(source), memory.queries, slab);
  const unsigned char* scales = ring.take(source);
  scale_scores(view, columns, tile * kTileTokens, offset, scales, s);
  float fade[2], start[2];
  weigh(s, running, fade);
  scale_weights(s, start, scales + Stage::value_a, scales + Stage::value_b, kCodeMiddle<kValueBits>, memory.weights);
  float output[kDim / kSlab][4];
  EW_UNROLL
  for (int m = 0; m < kDim / kSlab; ++m) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e) output[m][e] = start[e % 2];
  }
  const unsigned char* stage = nullptr;
  for (int slab = 0; slab < kTileSlabs; ++slab) {
    std::uint32_t b[2];
    stage = ring.take(source);
    load_fragment(b, memory.weights, slab);
    mix_codes<kDim, kValueBits>(output, stage, b);
  }
  std::uint32_t value_c[kDim / kSlab];
  load_words<kDim / 4>(value_c, stage + Stage::value_bytes + kDim / 4 * fragment_row());
  EW_UNROLL
  for (int m = 0; m < kDim / kSlab; ++m) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e)
      running.output[m][e] = running.output[m][e] * fade[e % 2] + output[m][e] * half_in(value_c, 2 * m + e / 2);
  }
}

// The records tile, tile + step, ... below `end`.
template <int kDim, int kKeyBits, int kValueBits, int kStages>
EW_DEVICE void attend_records(const AttentionView& view, const RowTokens& tokens, const Columns& columns,
                              const WarpMemory& memory, int tile, int end, int step, Running<kDim>& running) {
  if (tile >= end) return;
  RecordSource<kDim, kKeyBits, kValueBits> source(view, tokens, tile, end, step);
  Ring<kStages, RecordStage<kDim, kKeyBits, kValueBits>::bytes> ring(memory.ring, source);
  for (; tile < end; tile += step)
    attend_record<kDim, kKeyBits, kValueBits>(view, columns, memory, tile, ring, source, running);
  sync_warp();  // before the ring's memory is used for something else
}

}  // namespace ew
