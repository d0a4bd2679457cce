// Starts stage `store` of KVarNAttention.
#include <algorithm>

#include "generated/calls/kvarn_attention.h"
#include "kernels/kvarn/kvarn_store.cuh"
#include "launchers/attention_stages.h"

namespace ew::cuda {
namespace {

// Tiles of a row that a call may encode: those that the ring holds, and those that the new tokens fill.
std::int64_t most_tiles(const AttentionView& view) { return view.exact_tiles - 1 + view.longest / kTileTokens; }

template <int kDim>
void launch_store(const StoreArguments& args, void* stream) {
  using Keys = BalanceMemory<TileShape<kDim, kTileTokens>>;
  using Values = BalanceMemory<TileShape<kTileTokens, kDim>>;
  const Grid grid{most_tiles(args.view) * args.view.kv_heads * 2, args.view.rows};
  launch("KVarNAttention", store_kvarn_kernel<kDim>, grid, 2 * kDim, std::max(sizeof(Keys), sizeof(Values)), stream,
         args);
}

}  // namespace

void store(const AttentionView& view, const Encoding& encoding, void* stream) {
  StoreArguments args{};
  args.view = view;
  args.key_bits = encoding.bits.keys;
  args.value_bits = encoding.bits.values;
  args.iterations = encoding.iterations;
  args.robust = encoding.robust;
  switch (view.head_dim) {
#define EW_CASE(d) \
  case d:          \
    return launch_store<d>(args, stream);
    EW_KVARN_ATTENTION_DIMS(EW_CASE)
#undef EW_CASE
  }
}

}  // namespace ew::cuda
