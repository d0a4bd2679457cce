// Stage `store` of KVarNAttention: tiles that are complete and committed become records, and the new tokens that stay
// exact go into their exact tiles.
//
// Block x takes one side of a tile (its keys or its values) and a place of the ring, for KV head (x / 2) % heads; y is
// the row. Block number i of a row's head encodes tile first + i if this call encodes that tile; first is the first
// tile that is not encoded. The first exact_tiles - 1 blocks also write the new tokens in the ring, each in the place
// that it has read. So a place is always read before a new tile overwrites it, with one launch and no order between
// blocks. Tiles further on have no token in the ring yet. Lengths are on the device, so the grid is as large as the
// sizes allow, and blocks without work end at once.
//
// 2 kDim threads: each holds 64 elements of the tile in registers (kvarn_balance.cuh). Bytes: a tile's side is read
// once and written as codes. Any architecture; shared memory 40 KB at most.
#pragma once

#include "kernels/attention/attention.cuh"
#include "kernels/kvarn/kvarn_encode.cuh"

namespace ew {

struct StoreArguments {
  AttentionView view;
  int key_bits, value_bits, iterations;
  bool robust;
};

// The call's part of a row and KV head.
struct StoredRow {
  RowTokens tokens;
  int first, end;  // tiles that the call encodes, from the first that is no record yet

  EW_DEVICE StoredRow(const AttentionView& view, int row, int head) : tokens(view, row, head) {
    const int at = view.entry(row, head), before = view.encoded_before[at] / kTileTokens;
    first = before > 1 ? before : 1;
    end = view.encoded_after[at] / kTileTokens;
  }
};

// Channel 0 of a token's key and value, and how far apart channels are.
struct TokenPlace {
  const std::uint16_t* from;
  int stride;
};

template <int kDim, bool kValues>
EW_DEVICE TokenPlace token_place(const AttentionView& view, const RowTokens& row, const std::uint16_t* exact,
                                 int token) {
  const int slot = token % kTileTokens;
  if (token < row.held && kValues) return {exact + value_offset(slot, kDim, kDim), 1};
  if (token < row.held) return {exact + key_offset(slot, 0, kDim), kBlockTokens};
  const std::int64_t at = static_cast<std::int64_t>(row.start + token - row.held) * view.kv_heads + row.head;
  return {(kValues ? view.fresh_values : view.fresh_keys) + at * kDim, 1};
}

// Keys: rows are channels, columns are tokens.
template <int kDim, class Shape>
EW_DEVICE void load_keys(const AttentionView& view, const RowTokens& row, int tile, TileElements<Shape>& x) {
  const std::uint16_t* exact = exact_tile(view, row.row, row.head, tile);
  EW_UNROLL
  for (int j = 0; j < Shape::each; ++j) {
    const int token = tile * kTileTokens + lane_index() * Shape::each + j;
    const TokenPlace place = token_place<kDim, false>(view, row, exact, token);
    EW_UNROLL
    for (int r = 0; r < Shape::warp_rows; ++r)
      x[r][j] = half_to_float(place.from[(warp_index() * Shape::warp_rows + r) * place.stride]);
  }
}

template <int kCount>
struct alignas(2 * kCount) Channels {
  std::uint16_t x[kCount];
};

// Values: rows are tokens, columns are channels.
template <int kDim, class Shape>
EW_DEVICE void load_values(const AttentionView& view, const RowTokens& row, int tile, TileElements<Shape>& x) {
  const std::uint16_t* exact = exact_tile(view, row.row, row.head, tile);
  EW_UNROLL
  for (int r = 0; r < Shape::warp_rows; ++r) {
    const int token = tile * kTileTokens + warp_index() * Shape::warp_rows + r;
    const TokenPlace place = token_place<kDim, true>(view, row, exact, token);
    const auto mine = reinterpret_cast<const Channels<Shape::each>*>(place.from)[lane_index()];
    EW_UNROLL
    for (int j = 0; j < Shape::each; ++j) x[r][j] = half_to_float(mine.x[j]);
  }
}

template <int kDim, bool kValues>
EW_DEVICE void encode_tile(const StoreArguments& args, const RowTokens& row, int tile) {
  using Shape = TileShape<kValues ? kTileTokens : kDim, kValues ? kDim : kTileTokens>;
  unsigned char* record = pool_tile(args.view, row.row, row.head, tile);
  TileElements<Shape> x;
  if constexpr (kValues) {
    load_values<kDim, Shape>(args.view, row, tile, x);
    encode<Shape>(x, args.iterations, args.robust, value_side(record, kDim, args.key_bits, args.value_bits));
  } else {
    load_keys<kDim, Shape>(args.view, row, tile, x);
    encode<Shape>(x, args.iterations, args.robust, key_side(record, kDim, args.key_bits));
  }
}

// The new tokens of an exact tile.
template <int kDim, bool kValues>
EW_DEVICE void store_tokens(const AttentionView& view, const RowTokens& row, int tile) {
  const int begin = tile * kTileTokens > row.held ? tile * kTileTokens : row.held;
  const int end = (tile + 1) * kTileTokens < row.total ? (tile + 1) * kTileTokens : row.total;
  std::uint16_t* exact = exact_tile(view, row.row, row.head, tile);
  for (int i = thread_index(); i < (end - begin) * kDim; i += thread_count()) {
    const int token = begin + i / kDim, channel = i % kDim, slot = token % kTileTokens;
    const TokenPlace place = token_place<kDim, kValues>(view, row, exact, token);
    exact[kValues ? value_offset(slot, kDim, kDim) + channel : key_offset(slot, channel, kDim)] = place.from[channel];
  }
}

template <int kDim, bool kValues>
EW_DEVICE void store_side(const StoreArguments& args, const StoredRow& row, int number) {
  const int tile = row.first + number, places = args.view.exact_tiles - 1;
  if (tile < row.end) encode_tile<kDim, kValues>(args, row.tokens, tile);
  if (number >= places) return;
  sync_block();  // all have read the tile in this place
  if (number == 0) store_tokens<kDim, kValues>(args.view, row.tokens, 0);
  const int skipped = row.end > tile ? (row.end - tile + places - 1) / places * places : 0;
  for (int next = tile + skipped; next * kTileTokens < row.tokens.total; next += places)
    store_tokens<kDim, kValues>(args.view, row.tokens, next);
}

template <int kDim>
EW_KERNEL(2 * kDim, 1)
store_kvarn_kernel(EW_CONSTANT StoreArguments args) {
  const AttentionView& view = args.view;
  const int heads = view.kv_heads, number = block_x() / (2 * heads);
  const StoredRow row(view, block_y(), block_x() / 2 % heads);
  if (row.tokens.count == 0) return;
  if (block_x() % 2 != 0)
    store_side<kDim, true>(args, row, number);
  else
    store_side<kDim, false>(args, row, number);
}

}  // namespace ew
