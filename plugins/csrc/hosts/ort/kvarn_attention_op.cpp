// KVarNAttention for ONNX Runtime: tensors and attributes in, KVarNArgs out.
#include <cstring>
#include <string>

#include "cpu/kvarn/kvarn_attention.h"
#include "hosts/ort/declaration.h"
#include "hosts/ort/host.h"
#include "ops/kvarn_attention.h"

namespace ew::ort {
namespace {

using namespace kvarn;

// The CPU takes float32 only.
struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration<kFloat>;
  const Api& api;
  Attributes attributes;

  Kernel(const Api& host, const KernelInfo* info) : api(host), attributes(NodeAttributes(host, info)) {}

  void compute(KernelContext* context) const;
};

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data);
}

KVarNArgs arguments(const Attributes& attributes, const Tensor* in) {
  KVarNArgs a{};
  a.scale = attributes.scale;
  a.softcap = attributes.softcap;
  a.window = attributes.window;
  a.iterations = attributes.iterations;
  a.k_bits = attributes.k_bits;
  a.v_bits = attributes.v_bits;
  a.robust = attributes.robust;
  a.rotate_values = attributes.rotate_values;
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
  a.kv_lens = data<std::int32_t>(in[kKvLens]) + attributes.layer * lens;
  a.table = data<std::int32_t>(in[kTileTable]) + attributes.layer * lens * a.table_width;
  a.encoded_before = data<std::int32_t>(in[kEncodedLens]) + attributes.layer * lens;
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
  expect_shapes(attributes, in);
  KVarNArgs args = arguments(attributes, in);
  const std::string fault = find_fault(args);
  if (!fault.empty()) throw std::invalid_argument(fault);
  args.output = static_cast<float*>(output(api, context, 0, {args.tokens, args.query_heads, args.head_dim}).data);
  args.tiles = static_cast<unsigned char*>(updated<2>(api, context, 1, in[kTiles], 1));
  args.exact = static_cast<Half*>(updated<4>(api, context, 2, in[kExact], sizeof(Half)));
  kvarn_attention(args, HostThreads(api, context));
}

}  // namespace

const DeclaredOp& kvarn_attention_op() {
  static const DeclaredOp op = declare<Kernel>(kDeclaration<kFloat>);
  return op;
}

}  // namespace ew::ort
