// Stage `decode` of attention: rows with few queries, their context split over blocks.
//
// A block (part, KV head, row) has four warps and goes over the part's tiles for all columns of the row
// (decode_columns.cuh), eight columns at a time. Each warp takes pieces (decode_halves.cuh) or records
// (decode_records.cuh) on its own, through a ring of stages in shared memory (decode_ring.cuh), without a barrier of
// the block in between; at the end the warps' sums are merged into one part (DecodeParts). Keys and values are the A of
// mma, 16 tokens or channels by 16; queries and weights are the B. So the heads of a group share the numbers that are
// read, and no sum crosses lanes except those for maxima and denominators.
//
// Head sizes: multiples of 16 whose 16-byte chunks fit a warp, 16 to 256; values have the size of keys. sm_80 and
// later. A row's results depend on its own tokens and on the number of parts, which the sizes of the batch decide, but
// not on the contents of other rows.
#pragma once

#include "kernels/attention/decode_halves.cuh"
#include "kernels/attention/decode_merge.cuh"
#include "kernels/attention/decode_records.cuh"

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

// Makes the block's part of the results that its warps have left in shared memory. The row is looked up again: nothing
// of it but `column` has to be kept while warps attend.
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
  const int last = kTileTokens * share_begin(begin, end, block_x() + 1, grid_x());
  const HalvesShare share{0, kTileTokens * share_begin(begin, end, block_x(), grid_x()),
                          last < tokens.stored ? last : tokens.stored, false};
  Running<kDim> running;
  attend_halves<kDim, Memory::halves_stages>(view, tokens, Columns(view, tokens, column), Memory::of_warp(), share,
                                             warp_index(), kDecodeWarps, running);
  leave_running<PlainChannels>(running);
}

// A block's columns, eight at a time: attend(tokens, first column) leaves what each warp has of them.
template <int kDim, class Attend>
EW_DEVICE void decode_columns(const DecodeArguments& args, Attend attend) {
  for (int column = 0;; column += kColumns) {
    const RowTokens tokens(args.view, block_z(), block_y());
    if (!is_decoded(tokens.count, args.view.group()) || column >= tokens.count * args.view.group()) return;
    store_queries<kDim>(args.view, tokens, column);
    sync_block();
    attend(tokens, column);
    sync_block();
    leave_part<kDim>(args, column);
    sync_block();
  }
}

template <int kDim>
EW_KERNEL(kDecodeThreads, kDim > 128 ? 2 : 4)
decode_paged_kernel(EW_CONSTANT DecodeArguments args) {
  decode_columns<kDim>(args,
                       [&args](const RowTokens& tokens, int column) { attend_paged<kDim>(args.view, tokens, column); });
}

// Tiles of halves of a KVarN row, and its new tokens: the first part, whatever the number of parts. They are few, and
// a block of their own for them keeps their registers and their order of channels out of the way of records.
template <int kDim>
EW_DEVICE void attend_exact(const AttentionView& view, const RowTokens& tokens, int column) {
  using Memory = DecodeMemory<kDim>;
  const int begin = tokens.tile_begin(view, 0);
  const int encoded = view.encoded_before[view.entry(tokens.row, tokens.head)] / kTileTokens;
  const int after_sink = begin > 1 ? begin : 1, after_records = encoded > after_sink ? encoded : after_sink;
  const int sink = begin > 0 ? 0 : tokens.stored < kTileTokens ? tokens.stored : kTileTokens;
  const HalvesShare share{sink, kTileTokens * after_records, tokens.stored, true};
  Running<kDim> running;
  attend_halves<kDim, Memory::halves_stages>(view, tokens, Columns(view, tokens, column), Memory::of_warp(), share,
                                             warp_index(), kDecodeWarps, running);
  leave_running<PlainChannels>(running);
}

// One of the other parts of a KVarN row: records.
template <int kDim, int kKeyBits, int kValueBits>
EW_DEVICE void attend_encoded(const AttentionView& view, const RowTokens& tokens, int column) {
  using Memory = DecodeMemory<kDim>;
  constexpr int kFit = Memory::ring_bytes / RecordStage<kDim, kKeyBits, kValueBits>::bytes;
  const int encoded = view.encoded_before[view.entry(tokens.row, tokens.head)] / kTileTokens;
  const int first = tokens.tile_begin(view, 0), begin = first > 1 ? first : 1, end = encoded > begin ? encoded : begin;
  Running<kDim> running;
  attend_records<kDim, kKeyBits, kValueBits, (kFit < 8 ? kFit : 8)>(
      view, tokens, Columns(view, tokens, column), Memory::of_warp(),
      share_begin(begin, end, block_x() - 1, grid_x() - 1) + warp_index(),
      share_begin(begin, end, block_x(), grid_x() - 1), kDecodeWarps, running);
  leave_running<OwnChannels>(running);
}

// Blocks that a multiprocessor shall hold; codes of eight bits and 128 channels would spill registers with four.
template <int kDim, int kKeyBits>
constexpr int kRecordBlocks = kDim > 128                     ? 2
                              : kDim == 128 && kKeyBits == 8 ? 3
                                                             : 4;

template <int kDim, int kKeyBits, int kValueBits>
EW_KERNEL(kDecodeThreads, (kRecordBlocks<kDim, kKeyBits>))
decode_kvarn_kernel(EW_CONSTANT DecodeArguments args) {
  if (block_x() == 0)
    decode_columns<kDim>(
        args, [&args](const RowTokens& tokens, int column) { attend_exact<kDim>(args.view, tokens, column); });
  else
    decode_columns<kDim>(args, [&args](const RowTokens& tokens, int column) {
      attend_encoded<kDim, kKeyBits, kValueBits>(args.view, tokens, column);
    });
}

}  // namespace ew
