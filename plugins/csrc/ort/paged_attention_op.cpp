// PagedAttention for ONNX Runtime: tensors and attributes in, AttentionArgs out.
#include <cstring>
#include <string>

#include "../cpu/paged_attention.h"
#include "../cpu/tile.h"
#include "declaration.h"
#include "host.h"

namespace ew::ort {
namespace {

enum Input { kQuery, kKey, kValue, kTiles, kQueryStarts, kKvLens, kTileTable, kSinks, kInputCount };

// The CPU takes float32 only; plugins/ops.py allows more for other devices.
const Port kInputs[] = {
    {"query", kFloat},        {"key", kFloat},     {"value", kFloat},      {"tiles", kInt8},
    {"query_starts", kInt32}, {"kv_lens", kInt32}, {"tile_table", kInt32}, {"sinks", kFloat, kOptional}};
const Port kOutputs[] = {{"output", kFloat}, {"tiles_out", kInt8}};
const AttributeDeclaration kAttributes[] = {{"layer", "int", "null"},
                                            {"scale", "float", "null"},
                                            {"window", "int", "0"},
                                            {"softcap", "float", "0.0"},
                                            {"kv_bits", "int", "16"}};
const Declaration kDeclaration = {"PagedAttention", 1, kInputs, 8, kOutputs, 2, kAttributes, 5};

struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration;
  const Api& api;
  std::int64_t layer, window, kv_bits;
  float scale, softcap;

  Kernel(const Api& host, const KernelInfo* info) : api(host) {
    const std::int64_t everything = 0, half = 16;
    const float off = 0.0f;
    layer = attribute(api, info, "layer", static_cast<const std::int64_t*>(nullptr));
    scale = attribute(api, info, "scale", static_cast<const float*>(nullptr));
    window = attribute(api, info, "window", &everything);
    softcap = attribute(api, info, "softcap", &off);
    kv_bits = attribute(api, info, "kv_bits", &half);
    if (layer < 0) fail("layer", std::to_string(layer), "0 or more");
    if (window < 0) fail("window", std::to_string(window), "0 (all) or more");
    if (!(softcap >= 0.0f)) fail("softcap", std::to_string(softcap), "0 (off) or more");
    if (kv_bits != 16 && kv_bits != 32) fail("kv_bits", std::to_string(kv_bits), "16 or 32");
  }

  void compute(KernelContext* context) const;
};

void expect(const Tensor* in, Input i, std::initializer_list<std::int64_t> shape, const char* names) {
  expect_shape(kInputs[i].name, in[i], shape, names);
}

void expect_shapes(const Kernel& kernel, const Tensor* in) {
  expect(in, kQuery, {-1, -1, -1}, "[T, Hq, D]");
  const std::int64_t tokens = in[kQuery].shape[0], query_heads = in[kQuery].shape[1], dim = in[kQuery].shape[2];
  expect(in, kKey, {tokens, -1, dim}, "[T, Hkv, D]");
  const std::int64_t kv_heads = in[kKey].shape[1];
  expect(in, kValue, {tokens, kv_heads, -1}, "[T, Hkv, Dv]");
  if (kv_heads < 1 || query_heads % kv_heads != 0 || query_heads < 1)
    fail("query", std::to_string(query_heads) + " heads", "a multiple of the key's " + std::to_string(kv_heads));
  if (dim < 1 || in[kValue].shape[2] < 1) fail("query and value", "an empty head", "D and Dv of 1 or more");
  expect(in, kTiles, {-1, tile_bytes(dim, in[kValue].shape[2], kernel.kv_bits)}, "[N, tile_bytes]");
  expect(in, kQueryStarts, {-1}, "[B + 1]");
  if (in[kQueryStarts].shape[0] < 1) fail("query_starts", "shape [0]", "[B + 1]");
  const std::int64_t rows = in[kQueryStarts].shape[0] - 1;
  expect(in, kKvLens, {-1, rows, kv_heads}, "[L, B, Hkv]");
  expect(in, kTileTable, {in[kKvLens].shape[0], rows, kv_heads, -1}, "[L, B, Hkv, M]");
  if (kernel.layer >= in[kKvLens].shape[0])
    fail("layer", std::to_string(kernel.layer), "below L = " + std::to_string(in[kKvLens].shape[0]));
  if (in[kSinks].rank >= 0) expect(in, kSinks, {query_heads}, "[Hq]");
}

AttentionArgs arguments(const Kernel& kernel, const Tensor* in) {
  AttentionArgs a{};
  a.query = static_cast<const float*>(in[kQuery].data);
  a.key = static_cast<const float*>(in[kKey].data);
  a.value = static_cast<const float*>(in[kValue].data);
  a.starts = static_cast<const std::int32_t*>(in[kQueryStarts].data);
  a.sinks = static_cast<const float*>(in[kSinks].data);
  a.tokens = in[kQuery].shape[0];
  a.query_heads = in[kQuery].shape[1];
  a.head_dim = in[kQuery].shape[2];
  a.kv_heads = in[kKey].shape[1];
  a.value_dim = in[kValue].shape[2];
  a.tile_count = in[kTiles].shape[0];
  a.rows = in[kQueryStarts].shape[0] - 1;
  a.table_width = in[kTileTable].shape[3];
  a.kv_lens = static_cast<const std::int32_t*>(in[kKvLens].data) + kernel.layer * a.rows * a.kv_heads;
  a.table = static_cast<const std::int32_t*>(in[kTileTable].data) + kernel.layer * a.rows * a.kv_heads * a.table_width;
  a.scale = kernel.scale;
  a.softcap = kernel.softcap;
  a.window = kernel.window;
  a.kv_bits = static_cast<int>(kernel.kv_bits);
  return a;
}

void Kernel::compute(KernelContext* context) const {
  Tensor in[kInputCount];
  for (int i = 0; i < kInputCount; ++i) in[i] = input(api, context, static_cast<std::size_t>(i));
  expect_shapes(*this, in);
  AttentionArgs args = arguments(*this, in);
  const std::string fault = find_fault(args);
  if (!fault.empty()) throw std::invalid_argument(fault);
  args.output = static_cast<float*>(output(api, context, 0, {args.tokens, args.query_heads, args.value_dim}).data);
  const std::int64_t bytes = in[kTiles].shape[1];
  args.tiles = static_cast<unsigned char*>(output(api, context, 1, {args.tile_count, bytes}).data);
  // the host bound two buffers: the op is functional then, at the price of a copy of the pool
  if (args.tiles != in[kTiles].data && args.tile_count > 0)
    std::memcpy(args.tiles, in[kTiles].data, static_cast<std::size_t>(args.tile_count * bytes));
  paged_attention(args, HostThreads(api, context));
}

}  // namespace

const DeclaredOp& paged_attention_op() {
  static const DeclaredOp op = declare<Kernel>(kDeclaration);
  return op;
}

}  // namespace ew::ort
