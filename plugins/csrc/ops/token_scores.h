// TokenScores for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include <string>

#include "generated/declarations/token_scores.h"
#include "layout/kvarn_record.h"
#include "ops/stored_tokens.h"

namespace ew::ops::scores {

using namespace declared::token_scores;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_logit_attributes(*this);
    expect_value(threshold >= 0.0f && threshold <= 1.0f, "threshold", threshold, "0 to 1");
    const bool has_codes = k_bits == 2 || k_bits == 4 || k_bits == 8;
    expect_value(k_bits == 0 || has_codes, "k_bits", k_bits, "0 (no records), 2, 4 or 8");
    if (has_codes)
      expect_value(v_bits == 2 || v_bits == 4 || v_bits == 8, "v_bits", v_bits, "2, 4 or 8");
    else
      expect_value(v_bits == 0, "v_bits", v_bits, "0, as k_bits is");
  }
};

inline StoredTokens stored_tokens(const Tensor* in) { return {in[kTiles], in[kKvLens], in[kTileTable]}; }

// The records, exact tiles and encoded lengths of a cache that has them.
inline void expect_records(const Attributes& attributes, const Tensor* in, std::int64_t rows, std::int64_t dim) {
  if (dim < kMinHeadDim || dim > kMaxHeadDim || (dim & (dim - 1)) != 0)
    fail("ring", "D = " + std::to_string(dim),
         "a power of two in [" + std::to_string(kMinHeadDim) + ", " + std::to_string(kMaxHeadDim) +
             "], because k_bits is not 0");
  expect_shape("tiles", in[kTiles], {-1, record_bytes(dim, attributes.k_bits, attributes.v_bits)},
               "[N, kvarn_tile_bytes]");
  if (in[kExact].rank < 0) fail("exact", "none", "one, because k_bits is not 0");
  if (in[kEncodedLens].rank < 0) fail("encoded_lens", "none", "one, because k_bits is not 0");
  expect_shape("exact", in[kExact], {in[kRing].shape[0], attributes.kv_heads, -1, exact_tile_size(dim)},
               "[S, kv_heads, F, 2 TILE_TOKENS D]");
  if (in[kExact].shape[2] < 2)
    fail("exact", "F = " + std::to_string(in[kExact].shape[2]), "2 tiles or more: the sink and the newest one");
  const std::int64_t layers = in[kKvLens].shape[0], heads = in[kKvLens].shape[2];
  expect_shape("encoded_lens", in[kEncodedLens], {2, layers, rows, heads}, "[2, L, B, H]");
}

inline void expect_shapes(const Attributes& attributes, const Tensor* in) {
  expect_shape("ring", in[kRing], {-1, -1, -1, -1}, "[S, Hq, R, D]");
  const std::int64_t query_heads = in[kRing].shape[1], entries = in[kRing].shape[2], dim = in[kRing].shape[3];
  if (entries < attributes.window)
    fail("ring", "R = " + std::to_string(entries), "at least window = " + std::to_string(attributes.window));
  expect_shape("slots", in[kSlots], {-1}, "[B]");
  const std::int64_t rows = in[kSlots].shape[0];
  if (attributes.k_bits > 0) {
    expect_tables(attributes, stored_tokens(in), rows, query_heads, dim);
    expect_records(attributes, in, rows, dim);
  } else {
    expect_stored_tokens(attributes, stored_tokens(in), rows, query_heads, dim);
    if (in[kExact].rank >= 0 || in[kEncodedLens].rank >= 0) fail("exact", "one", "none, because k_bits is 0");
  }
  expect_shape("last_positions", in[kLastPositions], {rows}, "[B]");
  if (in[kSinks].rank >= 0) expect_shape("sinks", in[kSinks], {query_heads}, "[Hq]");
}

// The encoded lengths of the node's layer; null without records.
inline const std::int32_t* layer_encoded(const Attributes& attributes, const Tensor* in) {
  if (attributes.k_bits == 0) return nullptr;
  const StoredTokens stored = stored_tokens(in);
  return static_cast<const std::int32_t*>(in[kEncodedLens].data) +
         attributes.layer * stored.rows() * stored.table_heads();
}

}  // namespace ew::ops::scores
