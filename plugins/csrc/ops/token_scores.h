// TokenScores for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include <string>

#include "generated/declarations/token_scores.h"
#include "ops/stored_tokens.h"

namespace ew::ops::scores {

using namespace declared::token_scores;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_logit_attributes(*this);
    expect_value(threshold >= 0.0f && threshold <= 1.0f, "threshold", threshold, "0 to 1");
  }
};

inline StoredTokens stored_tokens(const Tensor* in) { return {in[kTiles], in[kKvLens], in[kTileTable]}; }

inline void expect_shapes(const Attributes& attributes, const Tensor* in) {
  expect_shape("ring", in[kRing], {-1, -1, -1, -1}, "[S, Hq, R, D]");
  const std::int64_t query_heads = in[kRing].shape[1], entries = in[kRing].shape[2], dim = in[kRing].shape[3];
  if (entries < attributes.window)
    fail("ring", "R = " + std::to_string(entries), "at least window = " + std::to_string(attributes.window));
  expect_shape("slots", in[kSlots], {-1}, "[B]");
  const std::int64_t rows = in[kSlots].shape[0];
  expect_stored_tokens(attributes, stored_tokens(in), rows, query_heads, dim);
  expect_shape("last_positions", in[kLastPositions], {rows}, "[B]");
  if (in[kSinks].rank >= 0) expect_shape("sinks", in[kSinks], {query_heads}, "[Hq]");
}

}  // namespace ew::ops::scores
