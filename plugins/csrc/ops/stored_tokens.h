// The tensors by which the ops of cache policies find the stored keys of one layer, and the checks that they share.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "layout/tile.h"
#include "ops/attributes.h"
#include "ops/tensor.h"

namespace ew::ops {

constexpr std::int64_t kMostDim = 1 << 16;  // of a head

struct StoredTokens {
  const Tensor &tiles, &kv_lens, &tile_table;

  std::int64_t rows() const { return kv_lens.shape[1]; }
  std::int64_t table_heads() const { return kv_lens.shape[2]; }
  const std::int32_t* layer_lens(std::int64_t layer) const {
    return static_cast<const std::int32_t*>(kv_lens.data) + layer * rows() * table_heads();
  }
  const std::int32_t* layer_table(std::int64_t layer) const {
    return static_cast<const std::int32_t*>(tile_table.data) + layer * rows() * table_heads() * tile_table.shape[3];
  }
};

// The attributes that TokenScores and MarkTokens have in common.
template <class Attributes>
void expect_logit_attributes(const Attributes& a) {
  expect_value(std::isfinite(a.scale), "scale", a.scale, "a finite number");
  expect_value(a.softcap >= 0.0f && std::isfinite(a.softcap), "softcap", a.softcap, "0 (off) or a finite number above");
  expect_value(a.kv_bits == 16 || a.kv_bits == 32, "kv_bits", a.kv_bits, "16 or 32");
}

// Throws unless the tables fit `rows` rows, and the node's layer and heads are in them.
template <class Attributes>
void expect_tables(const Attributes& a, const StoredTokens& in, std::int64_t rows, std::int64_t query_heads,
                   std::int64_t dim) {
  if (query_heads < 1 || query_heads % a.kv_heads != 0)
    fail("kv_heads", std::to_string(a.kv_heads), "a divisor of the " + std::to_string(query_heads) + " query heads");
  if (dim < 1 || dim > kMostDim) fail("query", "D = " + std::to_string(dim), "1 to " + std::to_string(kMostDim));
  expect_shape("kv_lens", in.kv_lens, {-1, rows, -1}, "[L, B, H]");
  const std::int64_t layers = in.kv_lens.shape[0], heads = in.kv_lens.shape[2];
  if (heads < a.kv_heads)
    fail("kv_lens", "H = " + std::to_string(heads), "at least kv_heads = " + std::to_string(a.kv_heads));
  expect_shape("tile_table", in.tile_table, {layers, rows, heads, -1}, "[L, B, H, M]");
  if (a.layer >= layers) fail("layer", std::to_string(a.layer), "below L = " + std::to_string(layers));
}

// The same, and throws unless the pool has tiles of keys of `dim`.
template <class Attributes>
void expect_stored_tokens(const Attributes& a, const StoredTokens& in, std::int64_t rows, std::int64_t query_heads,
                          std::int64_t dim) {
  expect_tables(a, in, rows, query_heads, dim);
  expect_shape("tiles", in.tiles, {-1, -1}, "[N, tile_bytes]");
  const std::int64_t bytes = in.tiles.shape[1], keys = tile_bytes(dim, 0, a.kv_bits),
                     step = tile_bytes(1, 0, a.kv_bits);
  if (bytes <= keys || bytes % step != 0)
    fail("tiles", std::to_string(bytes) + " bytes a tile",
         "those of keys of " + std::to_string(dim) + " and values, more than " + std::to_string(keys) +
             " and a multiple of " + std::to_string(step));
}

}  // namespace ew::ops
