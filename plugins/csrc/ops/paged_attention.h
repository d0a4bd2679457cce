// PagedAttention for every host: ports, attributes and the shapes that a call must have.
#pragma once

#include <string>

#include "layout/tile.h"
#include "ops/attributes.h"
#include "ops/declaration.h"
#include "ops/tensor.h"

namespace ew::ops::paged {

enum Input { kQuery, kKey, kValue, kTiles, kQueryStarts, kKvLens, kTileTable, kSinks, kInputCount };

// kType: of the activations that the host's kernels take; plugins/ops.py allows several.
template <ElementType kType>
inline constexpr Port kInputs[] = {
    {"query", kType},         {"key", kType},      {"value", kType},       {"tiles", kInt8},
    {"query_starts", kInt32}, {"kv_lens", kInt32}, {"tile_table", kInt32}, {"sinks", kFloat, kOptional}};
template <ElementType kType>
inline constexpr Port kOutputs[] = {{"output", kType}, {"tiles_out", kInt8, kRequired, kTiles}};
inline constexpr AttributeDeclaration kAttributes[] = {{"layer", "int", "null"},
                                                       {"scale", "float", "null"},
                                                       {"window", "int", "0"},
                                                       {"softcap", "float", "0.0"},
                                                       {"kv_bits", "int", "16"}};
template <ElementType kType>
inline constexpr Declaration kDeclaration = {"PagedAttention", 1, kInputs<kType>, kInputCount,
                                             kOutputs<kType>,  2, kAttributes,    5};

struct Attributes {
  std::int64_t layer, window, kv_bits;
  float scale, softcap;

  explicit Attributes(const AttributeReader& node) {
    layer = node.integer("layer");
    scale = node.number("scale");
    window = node.integer("window", 0);
    softcap = node.number("softcap", 0.0f);
    kv_bits = node.integer("kv_bits", 16);
    if (layer < 0) fail("layer", std::to_string(layer), "0 or more");
    if (window < 0) fail("window", std::to_string(window), "0 (all) or more");
    if (!(softcap >= 0.0f)) fail("softcap", std::to_string(softcap), "0 (off) or more");
    if (kv_bits != 16 && kv_bits != 32) fail("kv_bits", std::to_string(kv_bits), "16 or 32");
  }
};

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
  expect(in, kKvLens, {-1, rows, kv_heads}, "[L, B, Hkv]");
  expect(in, kTileTable, {in[kKvLens].shape[0], rows, kv_heads, -1}, "[L, B, Hkv, M]");
  if (attributes.layer >= in[kKvLens].shape[0])
    fail("layer", std::to_string(attributes.layer), "below L = " + std::to_string(in[kKvLens].shape[0]));
  if (in[kSinks].rank >= 0) expect(in, kSinks, {query_heads}, "[Hq]");
}

}  // namespace ew::ops::paged
