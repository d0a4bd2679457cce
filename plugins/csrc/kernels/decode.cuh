// Stage `decode` of attention: rows with few queries, their context split over blocks.
//
// Block (part, KV head, row), four warps: the part's tiles, of all of the row's columns (decode_columns.cuh), eight at
// a time. Each warp takes whole tiles on its own, through a ring of stages in shared memory (decode_ring.cuh), and no
// barrier of the block stands between tiles; at the end the warps' sums are merged and one part is left (DecodeParts).
// Keys and values are the A of mma, 16 tokens or channels by 16; queries and weights the B: so the heads of a group
// share what is read, and no sum crosses lanes but for maxima and denominators.
#pragma once

#include "decode_halves.cuh"
#include "decode_merge.cuh"

namespace ew {

struct DecodeArguments {
  AttentionView view;
  DecodeParts parts;
};

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = kDecodeWarps * kWarp;

// Shared memory: the queries' B, each warp's weights, their denominators, and the rings.
template <int kDim>
struct DecodeMemory {
  static constexpr int halves_stages = kDim > 64 ? 2 : 4;  // two of 4 KiB keep an H200 busy; shared memory is short
  static constexpr int ring_bytes = halves_stages * HalvesStage<kDim>::bytes;
  static constexpr int weights = kDim / kSlab * kFragmentBytes;
  static constexpr int weights_bytes = kTileSlabs * kFragmentBytes;
  static constexpr int denominators = weights + kDecodeWarps * weights_bytes;
  static constexpr int rings = denominators + 8 * kDecodeWarps * kColumns;
  static constexpr int bytes = rings + kDecodeWarps * ring_bytes;
  static_assert(OutputTable<kDim>::bytes <= ring_bytes, "outputs are merged in the rings' memory");

  EW_DEVICE static unsigned char* ring(int warp) { return shared_memory() + rings + warp * ring_bytes; }
  EW_DEVICE static WarpMemory of_warp() {
    return {shared_memory(), shared_memory() + weights + warp_index() * weights_bytes, ring(warp_index())};
  }
};

// The B of the queries' columns begin + [0, 8): words (2 i, 2 i + 1) and (2 i + 8, 2 i + 9) of a slab of channels.
template <int kDim>
EW_DEVICE void store_queries(const AttentionView& view, const RowTokens& tokens, int begin) {
  const int group = view.group();
  for (int n = thread_index(); n < kDim / kSlab * kWarp; n += kDecodeThreads) {
    const int column = begin + n % kWarp / 4, channel = n / kWarp * kSlab + 2 * (n % 4);
    Words2 words{{0, 0}};
    if (column < tokens.count * group) {
      const std::int64_t token = tokens.start + column / group;
      const std::int64_t at = (token * view.query_heads + tokens.head * group + column % group) * kDim + channel;
      words.x[0] = *reinterpret_cast<const std::uint32_t*>(view.query + at);
      words.x[1] = *reinterpret_cast<const std::uint32_t*>(view.query + at + 8);
    }
    *reinterpret_cast<Words2*>(shared_memory() + 8 * n) = words;
  }
}

// What the warps of a block have left in shared memory becomes the block's part. The row is looked up again: nothing of
// it but `column` has to be kept while warps attend.
template <int kDim>
EW_DEVICE void leave_part(const DecodeArguments& args, int column) {
  using Memory = DecodeMemory<kDim>;
  const RowTokens tokens(args.view, block_z(), block_y());
  write_part<kDim, kDecodeWarps>(args.view, tokens, args.parts, block_x(), column,
                                 reinterpret_cast<const float*>(Memory::ring(0)), Memory::ring_bytes / 4,
                                 reinterpret_cast<const float*>(shared_memory() + Memory::denominators));
}

template <class Channels, int kDim>
EW_DEVICE void leave_running(const Running<kDim>& running) {
  using Memory = DecodeMemory<kDim>;
  store_denominators(reinterpret_cast<float*>(shared_memory() + Memory::denominators), running);
  store_outputs<Channels>(reinterpret_cast<float*>(Memory::ring(warp_index())), running);
}

// One part of the tiles of halves that PagedAttention has alone.
template <int kDim>
EW_DEVICE void attend_paged(const AttentionView& view, const RowTokens& tokens, int column) {
  using Memory = DecodeMemory<kDim>;
  const int begin = tokens.tile_begin(view, 0), end = tokens.tile_end();
  const HalvesShare share{share_begin(begin, end, block_x(), grid_x()),
                          share_begin(begin, end, block_x() + 1, grid_x()), false, false};
  Running<kDim> running;
  attend_halves<kDim, Memory::halves_stages>(view, tokens, Columns(view, tokens, column), Memory::of_warp(), share,
                                             warp_index(), kDecodeWarps, running);
  leave_running<PlainChannels>(running);
}

template <int kDim>
EW_KERNEL(kDecodeThreads, kDim > 128 ? 2 : 4)
decode_paged_kernel(EW_CONSTANT DecodeArguments args) {
  for (int column = 0;; column += kColumns) {
    const RowTokens tokens(args.view, block_z(), block_y());
    if (!is_decoded(tokens.count, args.view.group()) || column >= tokens.count * args.view.group()) return;
    store_queries<kDim>(args.view, tokens, column);
    sync_block();
    attend_paged<kDim>(args.view, tokens, column);
    sync_block();
    leave_part<kDim>(args, column);
    sync_block();
  }
}

}  // namespace ew
