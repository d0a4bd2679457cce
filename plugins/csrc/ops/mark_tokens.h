// MarkTokens for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include <string>

#include "generated/declarations/mark_tokens.h"
#include "ops/stored_tokens.h"

namespace ew::ops::marks {

using namespace declared::mark_tokens;

constexpr std::int64_t kGiven = 2;  // the attribute `kind`: tokens are marked with `values`

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_logit_attributes(*this);
    expect_value(alpha > 0.0f && alpha <= 1.0f, "alpha", alpha, "above 0, at most 1");
  }

  std::int64_t channels() const { return kind == 1 ? 2 : 1; }
};

inline StoredTokens stored_tokens(const Tensor* in) { return {in[kTiles], in[kKvLens], in[kTileTable]}; }

inline void expect_shapes(const Attributes& attributes, const Tensor* in) {
  expect_shape("query", in[kQuery], {-1, -1, -1}, "[T, Hq, D]");
  const std::int64_t tokens = in[kQuery].shape[0], query_heads = in[kQuery].shape[1], dim = in[kQuery].shape[2];
  expect_shape("query_starts", in[kQueryStarts], {-1}, "[B + 1]");
  if (in[kQueryStarts].shape[0] < 1) fail("query_starts", "shape [0]", "[B + 1]");
  expect_stored_tokens(attributes, stored_tokens(in), in[kQueryStarts].shape[0] - 1, query_heads, dim);
  expect_shape("position_ids", in[kPositionIds], {tokens}, "[T]");
  expect_shape("marks", in[kMarks], {in[kTiles].shape[0], attributes.channels(), kTileTokens}, "[N, C, 128]");
  if (in[kSinks].rank >= 0) expect_shape("sinks", in[kSinks], {query_heads}, "[Hq]");
  const bool has_values = in[kValues].rank >= 0;
  if (has_values != (attributes.kind == kGiven))
    fail("values", has_values ? "a tensor" : "none",
         (has_values ? "none with kind = " : "[T, kv_heads] with kind = ") + std::to_string(attributes.kind));
  if (has_values) expect_shape("values", in[kValues], {tokens, attributes.kv_heads}, "[T, kv_heads]");
}

}  // namespace ew::ops::marks
