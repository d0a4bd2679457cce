// Decoding over tiles of halves, and over a KVarN call's own tokens, in pieces of 32 tokens.
//
// A slab is 16 tokens of keys or of values. A stage of the ring holds one slab:
//
//   keys     [head_dim][16 tokens], the two 16-byte halves of a channel exchanged where channel & 4: matrices of 8 x 8
//            are then read without bank conflicts; transposed, they are K[tokens, channels], the A of S^T = K Q^T
//   values   [16 tokens][dim], rows padded by 16 bytes; transposed, V^T[channels, tokens], the A of O^T
//   fresh    the call's own keys, laid out like values; not transposed, K[tokens, channels]
//
// Row g + 8 r of slab m of tokens is token 16 m + g + 8 r of the piece; the same holds for channels of the output. The
// scores of a piece take eight registers, and a tile's four pieces go to the four warps, so all of them share the work
// on one exact tile of KVarN.
#pragma once

#include "kernels/attention/decode_columns.cuh"
#include "kernels/attention/decode_ring.cuh"

namespace ew {

constexpr int kPieceSlabs = 2, kPieceTokens = kPieceSlabs * kSlab;
static_assert(kPieceTokens >= kDecodeLanes, "a decoded row's new tokens are one piece");

template <int kDim>
struct HalvesStage {
  static constexpr int row_bytes = 2 * kDim + 16;
  static constexpr int bytes = kSlab * row_bytes;
  static_assert(kDim % kSlab == 0, "whole slabs of channels");
};

// The tokens of a piece.
struct Piece {
  int first, count;
  bool is_fresh;

  EW_DEVICE int slabs() const { return (count + kSlab - 1) / kSlab; }
};

// The pieces of halves in a block's share of a row: of tokens [0, sink), of tokens [begin, end), and the new ones.
struct HalvesShare {
  int sink, begin, end;
  bool has_fresh;

  EW_DEVICE static int pieces(int tokens) { return tokens > 0 ? (tokens + kPieceTokens - 1) / kPieceTokens : 0; }
  EW_DEVICE int count() const { return pieces(sink) + pieces(end - begin) + has_fresh; }

  EW_DEVICE Piece at(const RowTokens& tokens, int index) const {
    if (has_fresh && index == count() - 1) return {tokens.held, tokens.count, true};
    const bool is_sink = index < pieces(sink);
    const int first = is_sink ? index * kPieceTokens : begin + (index - pieces(sink)) * kPieceTokens;
    const int left = (is_sink ? sink : end) - first;
    return {first, left < kPieceTokens ? left : kPieceTokens, false};
  }
  // The first of the keys of its tile; values lie after those of 128 tokens, fresh ones in an array of their own.
  EW_DEVICE const std::uint16_t* keys(const AttentionView& view, const RowTokens& tokens, int index) const {
    const Piece piece = at(tokens, index);
    return piece.is_fresh ? view.fresh_keys + fresh_place(view, tokens)
                          : halves_tile(view, tokens.row, tokens.head, piece.first / kTileTokens);
  }
  EW_DEVICE static std::int64_t fresh_place(const AttentionView& view, const RowTokens& tokens) {
    return (static_cast<std::int64_t>(tokens.start) * view.kv_heads + tokens.head) * view.head_dim;
  }
};

// Copies the pieces index, index + step, ... of a share, key slabs and then value slabs of each.
template <int kDim>
class HalvesSource {
 public:
  EW_DEVICE HalvesSource(const AttentionView& view, const RowTokens& tokens, const HalvesShare& share, int index,
                         int step)
      : view_(view),
        tokens_(tokens),
        share_(share),
        index_(index),
        step_(step),
        slab_(0),
        keys_(nullptr),
        ahead_(nullptr) {
    if (index_ < share_.count()) keys_ = share_.keys(view_, tokens_, index_);
    look_ahead();
  }

  EW_DEVICE void copy_next(unsigned char* to) {
    if (index_ >= share_.count()) return;
    const Piece piece = share_.at(tokens_, index_);
    const int slabs = piece.slabs(), slab = slab_ < slabs ? slab_ : slab_ - slabs;
    if (piece.is_fresh)
      copy_rows<true>(to, slab_ < slabs ? keys_ : fresh_values(), slab * kSlab, piece.count - slab * kSlab);
    else if (slab_ >= slabs)
      copy_rows<false>(to, keys_ + kTileTokens * kDim, piece.first % kTileTokens + slab * kSlab,
                       piece.count - slab * kSlab);
    else
      copy_keys(to, piece.first % kTileTokens / kSlab + slab);
    if (++slab_ < 2 * slabs) return;
    slab_ = 0;
    index_ += step_;
    keys_ = ahead_;
    look_ahead();
  }

 private:
  // The address of the tile after this one comes from a table: it is read a piece before it is needed.
  EW_DEVICE void look_ahead() {
    if (index_ + step_ < share_.count()) ahead_ = share_.keys(view_, tokens_, index_ + step_);
  }

  EW_DEVICE const std::uint16_t* fresh_values() const {
    return view_.fresh_values + HalvesShare::fresh_place(view_, tokens_);
  }

  EW_DEVICE void copy_keys(unsigned char* to, int slab) const {
    const std::uint16_t* from = keys_ + slab * kSlab * kDim + 8 * lane_index();
    to += 16 * (lane_index() ^ ((lane_index() >> 3) & 1));
    EW_UNROLL
    for (int n = 0; n < kDim / kSlab; ++n) copy_async_16(to + 16 * kWarp * n, from + 8 * kWarp * n);
  }

  // Rows from `left` on hold anything, NaN too, and become zeros: their weights are zeros. A pass of the warp copies
  // whole rows, so that all a lane keeps of its places is one address; fresh rows beyond the last may lie after the end
  // of memory, and the first one stands for them.
  template <bool kFresh>
  EW_DEVICE void copy_rows(unsigned char* to, const std::uint16_t* rows, int first, int left) const {
    constexpr int kChunks = kDim / 8, kRows = kWarp / kChunks;
    const int row = lane_index() / kChunks, column = lane_index() % kChunks;
    if (row >= kRows) return;
    const std::int64_t stride = kFresh ? view_.kv_heads * kDim : kDim;
    const std::uint16_t* from = rows + (first + row) * stride + 8 * column;
    to += row * HalvesStage<kDim>::row_bytes + 16 * column;
    EW_UNROLL
    for (int n = 0; n < kSlab; n += kRows) {
      if (kSlab % kRows != 0 && n + row >= kSlab) break;
      const bool is_held = n + row < left;
      copy_async_16(to + n * HalvesStage<kDim>::row_bytes, !kFresh || is_held ? from + n * stride : rows, is_held);
    }
  }

  const AttentionView& view_;
  const RowTokens& tokens_;
  const HalvesShare& share_;
  int index_, step_, slab_;
  const std::uint16_t *keys_, *ahead_;
};

// S^T of one slab of tokens; queries: B of each slab of channels.
template <int kDim>
EW_DEVICE void score_slab(float (&s)[4], const unsigned char* stage, const unsigned char* queries, bool is_fresh) {
  const int matrix = lane_index() / 8, row = lane_index() % 8;
  const int channel = 8 * (matrix / 2) + row;  // of a slab, where channels are rows
  const unsigned char* keys = is_fresh
                                  ? stage + (8 * (matrix % 2) + row) * HalvesStage<kDim>::row_bytes + 16 * (matrix / 2)
                                  : stage + 16 * (2 * channel + ((matrix % 2) ^ ((channel >> 2) & 1)));
  EW_UNROLL
  for (int n = 0; n < 4; ++n) s[n] = 0.0f;
  EW_UNROLL
  for (int n = 0; n < kDim / kSlab; ++n) {
    std::uint32_t a[4], b[2];
    if (is_fresh)
      load_matrices(a, keys + 2 * kSlab * n);
    else
      load_matrices_transposed(a, keys + 2 * kSlab * kSlab * n);
    load_fragment(b, queries, n);
    mma_16x8x16(s, a, b);
  }
}

// O^T += V^T P^T of one slab of tokens.
template <int kDim>
EW_DEVICE void mix_slab(float (&output)[kDim / kSlab][4], const unsigned char* stage,
                        const std::uint32_t (&weights)[2]) {
  const int matrix = lane_index() / 8, row = lane_index() % 8;
  const unsigned char* values = stage + (8 * (matrix / 2) + row) * HalvesStage<kDim>::row_bytes + 16 * (matrix % 2);
  EW_UNROLL
  for (int n = 0; n < kDim / kSlab; ++n) {
    std::uint32_t a[4];
    load_matrices_transposed(a, values + 2 * kSlab * n);
    mma_16x8x16(output[n], a, weights);
  }
}

// A warp's shared memory: B of the queries, room for B of its weights, and its ring.
struct WarpMemory {
  const unsigned char* queries;
  unsigned char *weights, *ring;
};

// One piece: scores, weights, outputs.
template <int kDim, class Stages>
EW_DEVICE void attend_piece(const AttentionView& view, const Columns& columns, const unsigned char* queries,
                            const Piece& piece, Stages& ring, HalvesSource<kDim>& source, Running<kDim>& running) {
  Scores<kPieceSlabs> s;
  EW_UNROLL
  for (int m = 0; m < kPieceSlabs; ++m) {
    if (m < piece.slabs()) score_slab<kDim>(s[m], ring.take(source), queries, piece.is_fresh);
    EW_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int slot = kSlab * m + fragment_row() + 8 * (e / 2);
      const bool seen = slot < piece.count && columns.sees(e % 2, piece.first + slot);
      s[m][e] = seen ? logit_of(view, s[m][e]) : kNothing;  // what is not stored may be NaN
    }
  }
  float fade[2];
  weigh(s, running, fade);
  EW_UNROLL
  for (int n = 0; n < kDim / kSlab; ++n) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e) running.output[n][e] *= fade[e % 2];
  }
  EW_UNROLL
  for (int m = 0; m < kPieceSlabs; ++m) {
    const std::uint32_t weights[2] = {transpose_matrix(pack_half2(s[m][0], s[m][1])),
                                      transpose_matrix(pack_half2(s[m][2], s[m][3]))};
    if (m < piece.slabs()) mix_slab<kDim>(running.output, ring.take(source), weights);
  }
}

// The pieces index, index + step, ... of a share.
template <int kDim, int kStages>
EW_DEVICE void attend_halves(const AttentionView& view, const RowTokens& tokens, const Columns& columns,
                             const WarpMemory& memory, const HalvesShare& share, int index, int step,
                             Running<kDim>& running) {
  if (index >= share.count()) return;
  HalvesSource<kDim> source(view, tokens, share, index, step);
  Ring<kStages, HalvesStage<kDim>::bytes> ring(memory.ring, source);
  for (; index < share.count(); index += step)
    attend_piece(view, columns, memory.queries, share.at(tokens, index), ring, source, running);
  sync_warp();  // before the ring's memory is used for something else
}

}  // namespace ew
