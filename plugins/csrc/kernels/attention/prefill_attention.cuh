// Stage `prefill` of both attention ops: flash attention on tensor cores for rows with more than kDecodeLanes lanes.
// A lane's number is query * group + head of the group, so a group's heads share every key and value that is read.
//
// Block x takes 128 lanes of KV head x % heads; y is the row. Lanes that see most come first, so that the blocks of the
// last queries, which take longest, start together. A warp has 16 lanes, with their queries and sums in registers. The
// block goes over the tokens that its lanes see in blocks of 64 (32 if heads are larger than 128). Two of these are in
// shared memory, one in use and one being copied (prefill_blocks.cuh), with one barrier for each. Warps that see
// nothing of such a block skip it.
//
// Shared memory: 4 (dim + value_dim) tokens bytes, 64 KB for heads of 128 and of 256; with records also two stages of
// codes, 32 KB at most: 96 KB in all, the limit of sm_120. Any architecture from sm_80 on; head sizes are multiples of
// 16.
#pragma once

#include "kernels/attention/prefill_products.cuh"

namespace ew {

struct PrefillArguments {
  AttentionView view;
  int key_bits, value_bits;  // of records
  StageSizes sizes;
};

// The part of a block of threads: lanes [first, first + kPrefillLanes) of a row and KV head.
struct LaneBlock {
  RowTokens row;
  int lanes, first;  // lanes: of the row

  EW_DEVICE explicit LaneBlock(const AttentionView& view)
      : row(view, block_y(), block_x() % view.kv_heads),
        lanes(row.count * view.group()),
        first((grid_x() - 1 - block_x()) / view.kv_heads * kPrefillLanes) {}
  EW_DEVICE int last() const { return (first + kPrefillLanes < lanes ? first + kPrefillLanes : lanes) - 1; }
  EW_DEVICE int warp_first() const { return first + warp_index() * kWarpLanes; }
};

// Normalised with the sink, if there is one, in the denominator alone; as view.type.
template <class Shape>
EW_DEVICE void store_outputs(const AttentionView& view, const LaneBlock& block, const WarpSums<Shape>& state) {
  const PairPlaces pairs(view, block.row.head, block.warp_first(), block.lanes);
  EW_UNROLL
  for (int i = 0; i < 2; ++i) {
    const float denominator = warp_sum<4>(state.denominator[i]);
    float factor = 1.0f / denominator;
    if (view.sinks != nullptr) {
      const float sink = view.sinks[pairs.head[i]] * kLog2E, most = sink > state.maximum[i] ? sink : state.maximum[i];
      const float share = fast_exp2(state.maximum[i] - most);
      factor = share / (denominator * share + fast_exp2(sink - most));
    }
    if (block.warp_first() + lane_index() / 4 + 8 * i >= block.lanes) continue;
    std::uint16_t* output = view.output + pairs(view, block.row, i) * Shape::value_dim;
    auto* words = reinterpret_cast<std::uint32_t*>(output) + lane_index() % 4;
    EW_UNROLL
    for (int n = 0; n < Shape::value_dim / 8; ++n) {
      const float low = state.sums[n][2 * i] * factor, high = state.sums[n][2 * i + 1] * factor;
      words[4 * n] = view.type == kHalf ? pack_half2(low, high)
                                        : pack_halves(from_float<kBfloat16>(low), from_float<kBfloat16>(high));
    }
  }
}

template <class Shape>
EW_KERNEL(kPrefillThreads, Shape::blocks)
prefill_kernel(EW_CONSTANT PrefillArguments args) {
  const AttentionView& view = args.view;
  const LaneBlock block(view);
  const RowTokens& row = block.row;
  if (is_decoded(row.count, view.group()) || block.first >= block.lanes) return;
  const int first_query = block.first / view.group(), last_query = block.last() / view.group();
  const BlockList<Shape> list(row, row.first_seen(view, first_query), row.held + last_query + 1);
  const BlockLoader<Shape> loader{view, row, list, args.key_bits, args.value_bits, args.sizes, shared_memory()};
  const PairPlaces pairs(view, row.head, block.warp_first(), block.lanes);
  const PairSight sight(row, pairs, block.warp_first() >= block.lanes);
  QueryOperands<Shape> queries;
  load_queries<Shape>(view, row, pairs, queries);
  WarpSums<Shape> state;
  loader.start_codes(0);
  copy_commit();
  EW_ROLLED
  for (int j = -1; j < list.total; ++j) {
    copy_wait<0>();
    sync_block();  // block j is there, and no warp still reads the buffer that is filled now
    loader.start_codes(j + 2);
    loader.fill(j + 1);
    copy_commit();
    if (j >= 0) attend<Shape>(view, sight, queries, list[j], loader.buffer(j), state);
  }
  const LaneBlock again(view);  // read again, not held: the loop needs the registers
  store_outputs<Shape>(view, again, state);
}

}  // namespace ew
