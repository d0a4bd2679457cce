// Fills in a call of the CompactTiles kernel, except the outputs.
#pragma once

#include "generated/calls/compact_tiles.h"
#include "ops/compact_tiles.h"

namespace ew::ops::compact {

inline EwCompactTiles call_of(const Attributes& attributes, const Tensor* in) {
  EwCompactTiles call{};
  call.moves = static_cast<const std::int32_t*>(in[kMoves].data);
  call.count = in[kMoves].shape[0];
  call.tile_count = in[kTiles].shape[0];
  call.head_dim = attributes.head_dim;
  call.value_dim = attributes.value_dim;
  call.channels = in[kMarks].rank >= 0 ? in[kMarks].shape[1] : 0;
  call.kv_bits = attributes.kv_bits;
  return call;
}

}  // namespace ew::ops::compact
