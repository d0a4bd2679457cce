// PagedAttention for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include <string>

#include "generated/declarations/paged_attention.h"
#include "layout/tile.h"
#include "ops/attention_tensors.h"
#include "ops/tensor.h"

namespace ew::ops::paged {

using namespace declared::paged_attention;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_value(softcap >= 0.0f, "softcap", softcap, "0 (off) or more");
    expect_value(kv_bits == 16 || kv_bits == 32, "kv_bits", kv_bits, "16 or 32");
  }
};

inline AttentionTensors attention_tensors(const Tensor* in) {
  return {in[kQuery], in[kKey], in[kValue], in[kQueryStarts], in[kKvLens], in[kTileTable], in[kSinks]};
}

inline void expect(const Tensor* in, Input i, std::initializer_list<std::int64_t> shape, const char* names) {
  expect_shape(kInputs<kFloat>[i].name, in[i], shape, names);
}

inline void expect_shapes(const Attributes& attributes, const Tensor* in) {
  expect(in, kQuery, {-1, -1, -1}, "[T, Hq, D]");
  const std::int64_t tokens = in[kQuery].shape[0], query_heads = in[kQuery].shape[1], dim = in[kQuery].shape[2];
  expect(in, kKey, {tokens, -1, dim}, "[T, Hkv, D]");
  const std::int64_t kv_heads = in[kKey].shape[1];
  expect(in, kValue, {tokens, kv_heads, -1}, "[T, Hkv, Dv]");
  if (kv_heads < 1 || query_heads % kv_heads != 0 || query_heads < 1)
    fail("query", std::to_string(query_heads) + " heads", "a multiple of the key's " + std::to_string(kv_heads));
  if (dim < 1 || in[kValue].shape[2] < 1) fail("query and value", "an empty head", "D and Dv of 1 or more");
  expect(in, kTiles, {-1, tile_bytes(dim, in[kValue].shape[2], attributes.kv_bits)}, "[N, tile_bytes]");
  expect(in, kQueryStarts, {-1}, "[B + 1]");
  if (in[kQueryStarts].shape[0] < 1) fail("query_starts", "shape [0]", "[B + 1]");
  const std::int64_t rows = in[kQueryStarts].shape[0] - 1;
  expect(in, kKvLens, {-1, rows, -1}, "[L, B, H]");
  const std::int64_t table_heads = expect_table_heads(in[kKvLens], kv_heads);
  expect(in, kTileTable, {in[kKvLens].shape[0], rows, table_heads, -1}, "[L, B, H, M]");
  if (attributes.layer >= in[kKvLens].shape[0])
    fail("layer", std::to_string(attributes.layer), "below L = " + std::to_string(in[kKvLens].shape[0]));
  if (in[kSinks].rank >= 0) expect(in, kSinks, {query_heads}, "[Hq]");
}

}  // namespace ew::ops::paged
