// KVarNAttention for every host: ports, attributes and the shapes that a call must have.
#pragma once

#include <string>

#include "layout/kvarn_record.h"
#include "ops/attributes.h"
#include "ops/declaration.h"
#include "ops/tensor.h"

namespace ew::ops::kvarn {

enum Input {
  kQuery,
  kKey,
  kValue,
  kTiles,
  kExact,
  kQueryStarts,
  kKvLens,
  kTileTable,
  kSlots,
  kEncodedLens,
  kSinks,
  kInputCount
};

// kType: of the activations that the host's kernels take; plugins/ops.py allows several.
template <ElementType kType>
inline constexpr Port kInputs[] = {{"query", kType},
                                   {"key", kType},
                                   {"value", kType},
                                   {"tiles", kInt8},
                                   {"exact", kFloat16},
                                   {"query_starts", kInt32},
                                   {"kv_lens", kInt32},
                                   {"tile_table", kInt32},
                                   {"slots", kInt32},
                                   {"encoded_lens", kInt32},
                                   {"sinks", kFloat, kOptional}};
template <ElementType kType>
inline constexpr Port kOutputs[] = {
    {"output", kType}, {"tiles_out", kInt8, kRequired, kTiles}, {"exact_out", kFloat16, kRequired, kExact}};
inline constexpr AttributeDeclaration kAttributes[] = {
    {"layer", "int", "null"},    {"scale", "float", "null"}, {"window", "int", "0"},
    {"softcap", "float", "0.0"}, {"k_bits", "int", "4"},     {"v_bits", "int", "2"},
    {"iterations", "int", "8"},  {"robust", "int", "0"},     {"rotate_values", "int", "1"}};
template <ElementType kType>
inline constexpr Declaration kDeclaration = {"KVarNAttention", 1, kInputs<kType>, kInputCount,
                                             kOutputs<kType>,  3, kAttributes,    9};

struct Attributes {
  std::int64_t layer, window, iterations;
  float scale, softcap;
  int k_bits, v_bits;
  bool robust, rotate_values;

  explicit Attributes(const AttributeReader& node) {
    layer = node.integer("layer");
    scale = node.number("scale");
    softcap = node.number("softcap", 0.0f);
    if (layer < 0) fail("layer", std::to_string(layer), "0 or more");
    if (!(softcap >= 0.0f)) fail("softcap", std::to_string(softcap), "0 (off) or more");
    window = node.integer("window", 0);
    if (window < 0) fail("window", std::to_string(window), "0 (all) or more");
    k_bits = bits(node, "k_bits", 4);
    v_bits = bits(node, "v_bits", 2);
    iterations = node.integer("iterations", 8);
    if (iterations < 0) fail("iterations", std::to_string(iterations), "0 or more");
    robust = flag(node, "robust", 0);
    rotate_values = flag(node, "rotate_values", 1);
  }

 private:
  static int bits(const AttributeReader& node, const char* name, std::int64_t fallback) {
    const std::int64_t width = node.integer(name, fallback);
    if (width != 2 && width != 4 && width != 8) fail(name, std::to_string(width), "2, 4 or 8");
    return static_cast<int>(width);
  }

  static bool flag(const AttributeReader& node, const char* name, std::int64_t fallback) {
    const std::int64_t value = node.integer(name, fallback);
    if (value != 0 && value != 1) fail(name, std::to_string(value), "0 or 1");
    return value == 1;
  }
};

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
  expect(in, kKvLens, {-1, rows, kv_heads}, "[L, B, Hkv]");
  const std::int64_t layers = in[kKvLens].shape[0];
  expect(in, kTileTable, {layers, rows, kv_heads, -1}, "[L, B, Hkv, M]");
  expect(in, kSlots, {rows}, "[B]");
  expect(in, kEncodedLens, {2, layers, rows, kv_heads}, "[2, L, B, Hkv]");
  if (attributes.layer >= layers)
    fail("layer", std::to_string(attributes.layer), "below L = " + std::to_string(layers));
  if (in[kSinks].rank >= 0) expect(in, kSinks, {query_heads}, "[Hq]");
}

}  // namespace ew::ops::kvarn
