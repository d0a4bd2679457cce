// One attention call as kernels see it: the row of a token, the tokens that a row's queries see, and the places of
// their keys and values. PagedAttention and KVarNAttention have the same stages:
//
//   prepare   queries become halves in the workspace, scaled (and rotated by Hadamard for KVarN); the new tokens'
//             keys and values go into their tiles (PagedAttention) or, rotated, into the workspace (KVarN: the call's
//             own tokens see each other exactly, and tiles are encoded after all tokens have attended)
//   decode    rows with few queries: the context is split, and each part leaves sums with their maximum and denominator
//   prefill   the other rows, which write straight to the output
//   finish    merges the parts, and turns KVarN's outputs back
//   store     KVarN: the new tokens become exact tiles, and tiles that are complete and committed become records
//
// A tile holds 128 tokens of one KV head, as halves (layout/tile.h) or as a record (layout/kvarn_record.h). For each
// channel of the keys 16 tokens are contiguous, and for each token of the values the channels are: byte_permute pairs
// the numbers that a lane reads into fragments of mma, as it does with codes.
#pragma once

#include "kernels/device/device.cuh"
#include "layout/kvarn_record.h"

namespace ew {

constexpr int kDecodeLanes = 32;  // (query, head of the group) pairs up to which a row is decoded, not prefilled

struct AttentionView {
  const std::uint16_t* query;   // [tokens, query_heads, head_dim], prepared: halves; see logit_of
  const std::int32_t* starts;   // [rows + 1]
  const std::int32_t* kv_lens;  // [rows, table_heads]
  const std::int32_t* table;    // [rows, table_heads, table_width]
  const float* sinks;           // [query_heads] or null
  std::uint16_t* output;        // [tokens, query_heads, value_dim] of `type`
  int tokens, rows, query_heads, kv_heads, head_dim, value_dim, table_heads, table_width, window;
  int longest;  // no row brings more new tokens
  float softcap;
  Type type;
  unsigned char* tiles;     // PagedAttention: tiles of halves; KVarN: records
  std::int64_t tile_bytes;  // of one of them
  // KVarN alone; null and 0 otherwise.
  std::uint16_t* exact;                                        // [slots, kv_heads, exact_tiles, 2 * 128 * head_dim]
  const std::int32_t *slots, *encoded_before, *encoded_after;  // [rows], [rows, table_heads] each
  const std::uint16_t *fresh_keys, *fresh_values;              // [tokens, kv_heads, head_dim]: the new tokens, rotated
  int exact_tiles;

  EW_DEVICE int group() const { return query_heads / kv_heads; }
  // The place of a row and KV head in kv_lens, the table and the encoded lengths.
  EW_DEVICE int entry(int row, int head) const { return row * table_heads + head; }
  EW_DEVICE bool is_kvarn() const { return exact != nullptr; }
};

// The row of a token: the last one that starts at it or before.
EW_DEVICE int row_of(const AttentionView& view, int token) {
  int low = 0, high = view.rows;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (view.starts[middle] <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// True where a row of `count` new tokens is decoded rather than prefilled.
EW_DEVICE bool is_decoded(int count, int group) { return count * group <= kDecodeLanes; }

// A row's tokens of one KV head: [0, stored) lie in tiles; those from there to `total` are in fresh_keys and
// fresh_values. PagedAttention stores the new tokens before anything reads them. Query i of the row sees tokens
// [first_seen(i), held + i].
struct RowTokens {
  int row, head, start, count;  // of the row's new tokens
  int held, total, stored;

  EW_DEVICE RowTokens(const AttentionView& view, int row_index, int kv_head)
      : row(row_index), head(kv_head), start(view.starts[row_index]), count(view.starts[row_index + 1] - start) {
    held = view.kv_lens[view.entry(row, head)];
    total = held + count;
    stored = view.is_kvarn() ? held : total;
  }
  EW_DEVICE int first_seen(const AttentionView& view, int query) const {
    const int first = held + query + 1 - view.window;
    return view.window > 0 && first > 0 ? first : 0;
  }
  // Tiles that hold something which query `query` or a later one sees.
  EW_DEVICE int tile_begin(const AttentionView& view, int query) const { return first_seen(view, query) / kTileTokens; }
  EW_DEVICE int tile_end() const { return (stored + kTileTokens - 1) / kTileTokens; }
};

// The address of an exact tile of KVarN: the sink, then a ring.
EW_DEVICE std::uint16_t* exact_tile(const AttentionView& view, int row, int head, int tile) {
  const int place = tile == 0 ? 0 : ring_place(tile, view.exact_tiles);
  const std::int64_t index =
      (static_cast<std::int64_t>(view.slots[row]) * view.kv_heads + head) * view.exact_tiles + place;
  return view.exact + index * exact_tile_size(view.head_dim);
}

EW_DEVICE unsigned char* pool_tile(const AttentionView& view, int row, int head, int tile) {
  const std::int64_t entry = static_cast<std::int64_t>(view.entry(row, head)) * view.table_width + tile;
  return view.tiles + view.table[entry] * view.tile_bytes;
}

// True for a record among the tiles that hold stored tokens.
EW_DEVICE bool is_record(const AttentionView& view, int row, int head, int tile) {
  return view.is_kvarn() && tile > 0 && tile < view.encoded_before[view.entry(row, head)] / kTileTokens;
}

// A tile of halves that holds stored tokens.
EW_DEVICE const std::uint16_t* halves_tile(const AttentionView& view, int row, int head, int tile) {
  return view.is_kvarn() ? exact_tile(view, row, head, tile)
                         : reinterpret_cast<const std::uint16_t*>(pool_tile(view, row, head, tile));
}

// Prepared queries carry scale * log2 e, or scale alone where logits are capped. The logit, in powers of two, of such a
// product:
EW_DEVICE float logit_of(const AttentionView& view, float product) {
  if (!(view.softcap > 0.0f)) return product;
  // quotients as powers of two: a division has branches, and they registers
  const float x = product * fast_exp2(-fast_log2(view.softcap));
  const float e = fast_exp2(-2.0f * kLog2E * (x < 0.0f ? -x : x));
  const float bent = (1.0f - e) * fast_exp2(-fast_log2(1.0f + e));
  return view.softcap * kLog2E * (x < 0.0f ? -bent : bent);
}

// The results of decoding: for each part of the context, row, query of the row and query head, value_dim sums before
// normalisation, and their maximum logit (-infinity: the part saw nothing) and denominator.
struct DecodeParts {
  float* sums;          // [parts, rows, queries, query_heads, value_dim]
  float* denominators;  // [parts, rows, queries, query_heads, 2]: maximum, denominator
  int parts, queries;   // queries: the most that a decoded row may have

  EW_DEVICE std::int64_t lane(const AttentionView& view, int part, int row, int query, int head) const {
    return ((static_cast<std::int64_t>(part) * view.rows + row) * queries + query) * view.query_heads + head;
  }
};

// The share of tiles [begin, end) that part `part` of `parts` reads.
EW_DEVICE int share_begin(int begin, int end, int part, int parts) {
  return begin + static_cast<int>(static_cast<std::int64_t>(end - begin) * part / parts);
}

}  // namespace ew
