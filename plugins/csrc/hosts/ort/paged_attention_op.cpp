// PagedAttention for ONNX Runtime: tensors and attributes in, AttentionArgs out.
#include <cstring>
#include <string>

#include "cpu/attention/paged_attention.h"
#include "hosts/ort/declaration.h"
#include "hosts/ort/host.h"
#include "ops/paged_attention.h"

namespace ew::ort {
namespace {

using namespace paged;

// The CPU takes float32 only.
struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  const Api& api;
  Attributes attributes;

  Kernel(const Api& host, const KernelInfo* info) : api(host), attributes(NodeAttributes(host, info)) {}

  void compute(KernelContext* context) const;
};

AttentionArgs arguments(const Attributes& attributes, const Tensor* in) {
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
  a.kv_lens = static_cast<const std::int32_t*>(in[kKvLens].data) + attributes.layer * a.rows * a.kv_heads;
  a.table =
      static_cast<const std::int32_t*>(in[kTileTable].data) + attributes.layer * a.rows * a.kv_heads * a.table_width;
  a.scale = attributes.scale;
  a.softcap = attributes.softcap;
  a.window = attributes.window;
  a.kv_bits = static_cast<int>(attributes.kv_bits);
  return a;
}

void Kernel::compute(KernelContext* context) const {
  Tensor in[kInputCount];
  for (int i = 0; i < kInputCount; ++i) in[i] = input(api, context, static_cast<std::size_t>(i));
  expect_shapes(attributes, in);
  AttentionArgs args = arguments(attributes, in);
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
  static const DeclaredOp op = declare<Kernel>(kDeclaration<kFloat>);
  return op;
}

}  // namespace ew::ort
