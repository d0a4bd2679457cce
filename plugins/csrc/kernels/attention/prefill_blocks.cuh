// The blocks of keys and values that a block of queries goes over, and their copies into shared memory.
//
// First come the blocks of tiles, which begin at multiples of Shape::tokens, then those of KVarN's own new tokens,
// which begin at the first new token. Block j is in buffer j % 2. While block j is in use, block j + 1 is being copied
// into the other buffer. A record's codes need an instruction or two each; so while the codes of block j + 1 become
// halves, those of block j + 2 are being copied into stage j % 2.
#pragma once

#include "kernels/attention/prefill_records.cuh"

namespace ew {

// Tokens [begin, begin + Shape::tokens) of the row, of which those below `end` exist in this place.
struct TokenBlock {
  int begin, end;
  bool is_fresh;
};

template <class Shape>
struct BlockList {
  int first, stored, total;  // the first block of tiles; how many are of tiles; and of all
  int fresh;                 // the first one of new tokens, among those
  const RowTokens& row;

  // The blocks that queries which see [low, high) need.
  EW_DEVICE BlockList(const RowTokens& row_tokens, int low, int high) : row(row_tokens) {
    const int stored_end = high < row.stored ? high : row.stored;
    first = low / Shape::tokens;
    stored = low < stored_end ? (stored_end + Shape::tokens - 1) / Shape::tokens - first : 0;
    fresh = low > row.stored ? (low - row.stored) / Shape::tokens : 0;
    total = stored;
    if (Shape::has_records && high > row.stored)
      total += (high - row.stored + Shape::tokens - 1) / Shape::tokens - fresh;
  }

  EW_DEVICE TokenBlock operator[](int j) const {
    if (!Shape::has_records || j < stored) return {(first + j) * Shape::tokens, row.stored, false};
    return {row.stored + (fresh + j - stored) * Shape::tokens, row.total, true};
  }
};

// Moves blocks into shared memory.
template <class Shape>
struct BlockLoader {
  const AttentionView& view;
  const RowTokens& row;
  const BlockList<Shape>& list;
  int key_bits, value_bits;
  StageSizes sizes;
  unsigned char* memory;  // two buffers, then two stages

  EW_DEVICE unsigned char* buffer(int j) const { return memory + j % 2 * Shape::bytes; }
  EW_DEVICE unsigned char* stage(int j) const { return memory + 2 * Shape::bytes + j % 2 * sizes.bytes; }
  EW_DEVICE Record record(int tile) const {
    return Record(pool_tile(view, row.row, row.head, tile), Shape::dim, key_bits, value_bits);
  }
  EW_DEVICE bool is_record_block(const TokenBlock& block) const {
    return !block.is_fresh && is_record(view, row.row, row.head, block.begin / kTileTokens);
  }

  // Starts copies of the codes of block j, if it is of a record.
  EW_DEVICE void start_codes(int j) const {
    if constexpr (Shape::has_records) {
      if (j >= list.total || !is_record_block(list[j])) return;
      const int begin = list[j].begin;
      stage_record<Shape>(record(begin / kTileTokens), begin % kTileTokens, stage(j), stage(j) + sizes.key_bytes);
    }
  }

  // Starts copies of block j, or makes it of its codes, which have arrived.
  EW_DEVICE void fill(int j) const {
    if (j >= list.total) return;
    const TokenBlock block = list[j];
    const int tile = block.begin / kTileTokens, slot = block.begin % kTileTokens, valid = block.end - block.begin;
    if constexpr (Shape::has_records) {
      if (block.is_fresh) return copy_fresh<Shape>(view, row, block.begin - row.stored, valid, buffer(j));
      if (is_record_block(block))
        return decode_record<Shape>(record(tile), slot, stage(j), stage(j) + sizes.key_bytes, buffer(j));
    }
    copy_halves<Shape>(halves_tile(view, row.row, row.head, tile), slot, valid, buffer(j));
  }
};

}  // namespace ew
