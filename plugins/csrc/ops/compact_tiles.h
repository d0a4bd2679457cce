// CompactTiles for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include <string>

#include "generated/declarations/compact_tiles.h"
#include "layout/tile.h"
#include "ops/stored_tokens.h"

namespace ew::ops::compact {

using namespace declared::compact_tiles;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_value(kv_bits == 16 || kv_bits == 32, "kv_bits", kv_bits, "16 or 32");
  }
};

inline void expect_shapes(const Attributes& a, const Tensor* in) {
  expect_shape("tiles", in[kTiles], {-1, tile_bytes(a.head_dim, a.value_dim, a.kv_bits)}, "[N, tile_bytes]");
  expect_shape("moves", in[kMoves], {-1, 4}, "[K, 4]");
  if (in[kMarks].rank >= 0) expect_shape("marks", in[kMarks], {in[kTiles].shape[0], -1, kTileTokens}, "[N, C, 128]");
}

}  // namespace ew::ops::compact
