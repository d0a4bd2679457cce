// The shared memory of a prefill block: keys and values of kTokens tokens, in chunks of 16 bytes. The chunks are
// swizzled so that the eight rows of a matrix, from which a tensor core's operand is loaded, lie in different banks.
//
//   keys    of tiles: [kTokens / 16][dim][16 tokens], as in a tile of halves; operands are its transpose
//           of the call's own tokens: [kTokens][dim], as stage `prepare` leaves them
//   values  [kTokens][dim]
//
// A copy moves a chunk of 8 tokens of a channel, or of 8 channels of a token, from every kind of source.
#pragma once

#include "kernels/attention/attention.cuh"

namespace ew {

constexpr int kPrefillThreads = 256, kPrefillWarps = kPrefillThreads / kWarp;
constexpr int kWarpLanes = 16;  // (query, head) pairs of a warp: rows of its products
constexpr int kPrefillLanes = kPrefillWarps * kWarpLanes;
constexpr int kChunk = 8;  // halves in 16 bytes

// Chunks of a row that change places among each other, by the row modulo 8: so many that 8 rows, which begin at a
// multiple of 8, have any one chunk in 8 different places modulo 8, that is, modulo 128 bytes.
template <int kChunks>
struct Swizzle {
  static constexpr int group = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : kChunks % 2 == 0 ? 2 : 1;
  EW_DEVICE static int of_row(int row) { return (row & 7) * group / 8; }
};

// The place of chunk `chunk` of row `row`, in chunks, in a matrix of kChunks chunks a row.
template <int kChunks>
EW_DEVICE int swizzled(int row, int chunk) {
  return row * kChunks + (chunk ^ Swizzle<kChunks>::of_row(row));
}

// The same for chunk `even` + odd, even being known when compiling: most of it is the offset of an instruction, and
// at most 4 different sums are in registers.
template <int kChunks>
EW_DEVICE int swizzled(int row, int even, int odd) {
  constexpr int kGroup = Swizzle<kChunks>::group;
  return row * kChunks + ((even % kGroup) ^ (odd ^ Swizzle<kChunks>::of_row(row))) + even / kGroup * kGroup;
}

// kRecords: the cache is KVarN's.
template <int kDim, int kValueDim, bool kRecords>
struct PrefillShape {
  static constexpr int dim = kDim, value_dim = kValueDim;
  static constexpr bool has_records = kRecords;
  static constexpr int tokens = kDim > 128 ? 32 : 64;  // of a block: two of them are in shared memory
  static constexpr int key_bytes = tokens * kDim * 2, value_bytes = tokens * kValueDim * 2;
  static constexpr int bytes = key_bytes + value_bytes;
  static constexpr int blocks = kDim > (kRecords ? 32 : 64) ? 1 : 2;  // on a multiprocessor, by their registers
  static_assert(kDim % 16 == 0 && kValueDim % 16 == 0 && kDim >= 32, "whole operands");
  static_assert(kTileTokens % tokens == 0, "a block lies in one tile");
};

// Chunk of keys in blocks of 16 tokens: tokens 8 octet to 8 octet + 7 of a channel.
template <class Shape>
EW_DEVICE int key_chunk(int channel, int octet) {
  return octet / 2 * (2 * Shape::dim) + swizzled<2>(channel, octet % 2);
}

// A thread's chunks of a matrix of kRows rows of kChunks chunks each.
template <int kRows, int kChunks>
struct ThreadChunks {
  static constexpr int all = kRows * kChunks, count = (all + kPrefillThreads - 1) / kPrefillThreads;
  // a thread's chunks are the same one of different rows, and these rows are equal modulo 8: then addresses differ by
  // constants
  static constexpr bool is_regular = kPrefillThreads % (8 * kChunks) == 0 && all % kPrefillThreads == 0;

  EW_DEVICE static bool exists(int i) { return all % kPrefillThreads == 0 || index(i) < all; }
  EW_DEVICE static int index(int i) { return i * kPrefillThreads + thread_index(); }
  EW_DEVICE static int row(int i) {
    return is_regular ? thread_index() / kChunks + i * (kPrefillThreads / kChunks) : index(i) / kChunks;
  }
  EW_DEVICE static int chunk(int i) { return (is_regular ? thread_index() : index(i)) % kChunks; }
  EW_DEVICE static int place(int i) {
    if (!is_regular) return swizzled<kChunks>(row(i), chunk(i));
    return swizzled<kChunks>(row(0), chunk(0)) + i * kPrefillThreads;
  }
};

// Starts copies of a matrix whose rows follow one another; rows from the `valid`th on become zeros.
template <int kRows, int kChunks>
EW_DEVICE void copy_rows(const std::uint16_t* from, int valid, unsigned char* to) {
  using Mine = ThreadChunks<kRows, kChunks>;
  EW_UNROLL
  for (int i = 0; i < Mine::count; ++i)
    if (Mine::exists(i)) copy_async_16(to + 16 * Mine::place(i), from + kChunk * Mine::index(i), Mine::row(i) < valid);
}

// A block of a tile of halves from `slot` on. Values that are not stored become zeros: they may be NaN, and no weight
// makes a NaN zero. Keys need no such care: their logits are replaced.
template <class Shape>
EW_DEVICE void copy_halves(const std::uint16_t* tile, int slot, int valid, unsigned char* to) {
  constexpr int kKeyRows = Shape::tokens / kBlockTokens * Shape::dim;  // of 16 tokens
  copy_rows<kKeyRows, kBlockTokens / kChunk>(tile + key_offset(slot, 0, Shape::dim), kKeyRows, to);
  copy_rows<Shape::tokens, Shape::value_dim / kChunk>(tile + value_offset(slot, Shape::dim, Shape::value_dim), valid,
                                                      to + Shape::key_bytes);
}

// A block of the call's own tokens, from the row's token `first` on, of which `valid` are the row's.
template <class Shape>
EW_DEVICE void copy_fresh(const AttentionView& view, const RowTokens& row, int first, int valid, unsigned char* to) {
  static_assert(Shape::dim == Shape::value_dim, "KVarN");
  using Mine = ThreadChunks<Shape::tokens, Shape::dim / kChunk>;
  const int stride = view.kv_heads * Shape::dim;
  const std::int64_t start = static_cast<std::int64_t>(row.start + first) * stride + row.head * Shape::dim;
  EW_UNROLL
  for (int i = 0; i < Mine::count; ++i) {
    const bool is_row = Mine::row(i) < valid;
    const std::int64_t from = start + (is_row ? Mine::row(i) : 0) * stride + kChunk * Mine::chunk(i);
    unsigned char* place = to + 16 * Mine::place(i);
    copy_async_16(place, view.fresh_keys + from, is_row);
    copy_async_16(place + Shape::key_bytes, view.fresh_values + from, is_row);
  }
}

}  // namespace ew
