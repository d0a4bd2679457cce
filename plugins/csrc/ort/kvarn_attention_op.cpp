// KVarNAttention for ONNX Runtime: tensors and attributes in, KVarNArgs out.
#include <cstring>
#include <string>

#include "../cpu/kvarn_attention.h"
#include "declaration.h"
#include "host.h"

namespace ew::ort {
namespace {

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

// The CPU takes float32 only; plugins/ops.py allows more for other devices.
const Port kInputs[] = {
    {"query", kFloat},   {"key", kFloat},          {"value", kFloat},           {"tiles", kInt8},
    {"exact", kFloat16}, {"query_starts", kInt32}, {"kv_lens", kInt32},         {"tile_table", kInt32},
    {"slots", kInt32},   {"encoded_lens", kInt32}, {"sinks", kFloat, kOptional}};
const Port kOutputs[] = {{"output", kFloat}, {"tiles_out", kInt8}, {"exact_out", kFloat16}};
const AttributeDeclaration kAttributes[] = {
    {"layer", "int", "null"},    {"scale", "float", "null"}, {"window", "int", "0"},
    {"softcap", "float", "0.0"}, {"k_bits", "int", "4"},     {"v_bits", "int", "2"},
    {"iterations", "int", "8"},  {"robust", "int", "0"},     {"rotate_values", "int", "1"}};
const Declaration kDeclaration = {"KVarNAttention", 1, kInputs, kInputCount, kOutputs, 3, kAttributes, 9};

struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration;
  const Api& api;
  std::int64_t layer;
  KVarNArgs constants{};  // what the attributes say

  Kernel(const Api& host, const KernelInfo* info) : api(host) {
    const float off = 0.0f;
    layer = attribute(api, info, "layer", static_cast<const std::int64_t*>(nullptr));
    constants.scale = attribute(api, info, "scale", static_cast<const float*>(nullptr));
    constants.softcap = attribute(api, info, "softcap", &off);
    if (layer < 0) fail("layer", std::to_string(layer), "0 or more");
    if (!(constants.softcap >= 0.0f)) fail("softcap", std::to_string(constants.softcap), "0 (off) or more");
    constants.window = number(info, "window", 0);
    if (constants.window < 0) fail("window", std::to_string(constants.window), "0 (all) or more");
    constants.k_bits = bits(info, "k_bits", 4);
    constants.v_bits = bits(info, "v_bits", 2);
    constants.iterations = number(info, "iterations", 8);
    if (constants.iterations < 0) fail("iterations", std::to_string(constants.iterations), "0 or more");
    constants.robust = flag(info, "robust", 0);
    constants.rotate_values = flag(info, "rotate_values", 1);
  }

  std::int64_t number(const KernelInfo* info, const char* name, std::int64_t fallback) const {
    return attribute(api, info, name, &fallback);
  }

  int bits(const KernelInfo* info, const char* name, std::int64_t fallback) const {
    const std::int64_t width = number(info, name, fallback);
    if (width != 2 && width != 4 && width != 8) fail(name, std::to_string(width), "2, 4 or 8");
    return static_cast<int>(width);
  }

  bool flag(const KernelInfo* info, const char* name, std::int64_t fallback) const {
    const std::int64_t value = number(info, name, fallback);
    if (value != 0 && value != 1) fail(name, std::to_string(value), "0 or 1");
    return value == 1;
  }

  void compute(KernelContext* context) const;
};

void expect(const Tensor* in, Input i, std::initializer_list<std::int64_t> shape, const char* names) {
  expect_shape(kInputs[i].name, in[i], shape, names);
}

void expect_cache_shapes(const KVarNArgs& constants, const Tensor* in, std::int64_t kv_heads, std::int64_t dim) {
  expect(in, kTiles, {-1, record_bytes(dim, constants.k_bits, constants.v_bits)}, "[N, kvarn_tile_bytes]");
  expect(in, kExact, {-1, kv_heads, -1, exact_tile_size(dim)}, "[S, Hkv, F, 2 TILE_TOKENS D]");
  if (in[kExact].shape[2] < 2)
    fail("exact", "F = " + std::to_string(in[kExact].shape[2]), "2 tiles or more: the sink and the newest one");
}

void expect_shapes(const Kernel& kernel, const Tensor* in) {
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
  expect_cache_shapes(kernel.constants, in, kv_heads, dim);
  expect(in, kQueryStarts, {-1}, "[B + 1]");
  if (in[kQueryStarts].shape[0] < 1) fail("query_starts", "shape [0]", "[B + 1]");
  const std::int64_t rows = in[kQueryStarts].shape[0] - 1;
  expect(in, kKvLens, {-1, rows, kv_heads}, "[L, B, Hkv]");
  const std::int64_t layers = in[kKvLens].shape[0];
  expect(in, kTileTable, {layers, rows, kv_heads, -1}, "[L, B, Hkv, M]");
  expect(in, kSlots, {rows}, "[B]");
  expect(in, kEncodedLens, {2, layers, rows, kv_heads}, "[2, L, B, Hkv]");
  if (kernel.layer >= layers) fail("layer", std::to_string(kernel.layer), "below L = " + std::to_string(layers));
  if (in[kSinks].rank >= 0) expect(in, kSinks, {query_heads}, "[Hq]");
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data);
}

KVarNArgs arguments(const Kernel& kernel, const Tensor* in) {
  KVarNArgs a = kernel.constants;
  a.query = data<float>(in[kQuery]);
  a.key = data<float>(in[kKey]);
  a.value = data<float>(in[kValue]);
  a.starts = data<std::int32_t>(in[kQueryStarts]);
  a.slots = data<std::int32_t>(in[kSlots]);
  a.sinks = data<float>(in[kSinks]);
  a.tokens = in[kQuery].shape[0];
  a.query_heads = in[kQuery].shape[1];
  a.head_dim = a.value_dim = in[kQuery].shape[2];
  a.kv_heads = in[kKey].shape[1];
  a.tile_count = in[kTiles].shape[0];
  a.slot_count = in[kExact].shape[0];
  a.exact_tiles = in[kExact].shape[2];
  a.rows = in[kQueryStarts].shape[0] - 1;
  a.table_width = in[kTileTable].shape[3];
  const std::int64_t lens = a.rows * a.kv_heads, layers = in[kKvLens].shape[0];
  a.kv_lens = data<std::int32_t>(in[kKvLens]) + kernel.layer * lens;
  a.table = data<std::int32_t>(in[kTileTable]) + kernel.layer * lens * a.table_width;
  a.encoded_before = data<std::int32_t>(in[kEncodedLens]) + kernel.layer * lens;
  a.encoded_after = a.encoded_before + layers * lens;
  a.kv_bits = 16;
  return a;
}

// An output that updates an input in place; where the host bound two buffers, a copy of the input to update.
template <std::size_t kRank>
void* updated(const Api& api, KernelContext* context, std::size_t index, const Tensor& from, std::size_t element) {
  static_assert(kRank == 2 || kRank == 4, "the pools' ranks");
  const std::int64_t* s = from.shape;
  Tensor to;
  if constexpr (kRank == 2)
    to = output(api, context, index, {s[0], s[1]});
  else
    to = output(api, context, index, {s[0], s[1], s[2], s[3]});
  std::size_t bytes = element;
  for (std::size_t axis = 0; axis < kRank; ++axis) bytes *= static_cast<std::size_t>(s[axis]);
  if (to.data != from.data && bytes > 0) std::memcpy(to.data, from.data, bytes);
  return to.data;
}

void Kernel::compute(KernelContext* context) const {
  Tensor in[kInputCount];
  for (int i = 0; i < kInputCount; ++i) in[i] = input(api, context, static_cast<std::size_t>(i));
  expect_shapes(*this, in);
  KVarNArgs args = arguments(*this, in);
  const std::string fault = find_fault(args);
  if (!fault.empty()) throw std::invalid_argument(fault);
  args.output = static_cast<float*>(output(api, context, 0, {args.tokens, args.query_heads, args.head_dim}).data);
  args.tiles = static_cast<unsigned char*>(updated<2>(api, context, 1, in[kTiles], 1));
  args.exact = static_cast<Half*>(updated<4>(api, context, 2, in[kExact], sizeof(Half)));
  kvarn_attention(args, HostThreads(api, context));
}

}  // namespace

const DeclaredOp& kvarn_attention_op() {
  static const DeclaredOp op = declare<Kernel>(kDeclaration);
  return op;
}

}  // namespace ew::ort
