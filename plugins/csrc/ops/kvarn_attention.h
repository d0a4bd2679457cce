// KVarNAttention for every host: checks of its attributes and of the shapes that a call must have.
#pragma once

#include <string>

#include "generated/declarations/kvarn_attention.h"
#include "layout/kvarn_record.h"
#include "ops/attention_tensors.h"
#include "ops/tensor.h"

namespace ew::ops::kvarn {

using namespace declared::kvarn_attention;

struct Attributes : AttributeValues {
  explicit Attributes(const AttributeReader& node) : AttributeValues(read_attributes(node)) {
    expect_value(softcap >= 0.0f, "softcap", softcap, "0 (off) or more");
    expect_bits("k_bits", k_bits);
    expect_bits("v_bits", v_bits);
  }

 private:
  static void expect_bits(const char* name, std::int64_t width) {
    expect_value(width == 2 || width == 4 || width == 8, name, width, "2, 4 or 8");
  }
};

inline AttentionTensors attention_tensors(const Tensor* in) {
  return {in[kQuery], in[kKey], in[kValue], in[kQueryStarts], in[kKvLens], in[kTileTable], in[kSinks]};
}

inline void expect(const Tensor* in, Input i, std::initializer_list<std::int64_t> shape, const char* names) {
  expect_shape(kInputs<kFloat>[i].name, in[i], shape, names);
}

inline void expect_cache_shapes(const Attributes& attributes, const Tensor* in, std::int64_t kv_heads,
                                std::int64_t dim) {
  expect(in, kTiles, {-1, record_bytes(dim, attributes.k_bits, attributes.v_bits)}, "[N, kvarn_tile_bytes]");
  expect(in, kExact, {-1, kv_heads, -1, exact_tile_size(dim)}, "[S, Hkv, F, 2 TILE_TOKENS D]");
  if (in[kExact].shape[2] < 2)
    fail("exact", "F = " + std::to_string(in[kExact].shape[2]), "2 tiles or more: the sink and the newest one");
}

inline void expect_shapes(const Attributes& attributes, const Tensor* in) {
  expect(in, kQuery, {-1, -1, -1}, "[T, Hq, D]");
  const std::int64_t tokens = in[kQuery].shape[0], query_heads = in[kQuery].shape[1], dim = in[kQuery].shape[2];
  if (dim < kMinHeadDim || dim > kMaxHeadDim || (dim & (dim - 1)) != 0)
    fail("query", "D = " + std::to_string(dim),
         "a power of two in [" + std::to_string(kMinHeadDim) + ", " + std::to_string(kMaxHeadDim) + "]");
  expect(in, kKey, {tokens, -1, dim}, "[T, Hkv, D]");
  const std::int64_t kv_heads = in[kKey].shape[1];
  expect(in, kValue, {tokens, kv_heads, dim}, "[T, Hkv, D]");
  if (kv_heads < 1 || query_heads % kv_heads != 0 || query_heads < 1)
    fail("query", std::to_string(query_heads) + " heads", "a multiple of the key's " + std::to_string(kv_heads));
  expect_cache_shapes(attributes, in, kv_heads, dim);
  expect(in, kQueryStarts, {-1}, "[B + 1]");
  if (in[kQueryStarts].shape[0] < 1) fail("query_starts", "shape [0]", "[B + 1]");
  const std::int64_t rows = in[kQueryStarts].shape[0] - 1;
  expect(in, kKvLens, {-1, rows, -1}, "[L, B, H]");
  const std::int64_t layers = in[kKvLens].shape[0], table_heads = expect_table_heads(in[kKvLens], kv_heads);
  expect(in, kTileTable, {layers, rows, table_heads, -1}, "[L, B, H, M]");
  expect(in, kSlots, {rows}, "[B]");
  expect(in, kEncodedLens, {2, layers, rows, table_heads}, "[2, L, B, H]");
  if (attributes.layer >= layers)
    fail("layer", std::to_string(attributes.layer), "below L = " + std::to_string(layers));
  if (in[kSinks].rank >= 0) expect(in, kSinks, {query_heads}, "[Hq]");
}

}  // namespace ew::ops::kvarn
