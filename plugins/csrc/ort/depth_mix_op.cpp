// DepthMix for ONNX Runtime: tensors and attributes in, DepthMixArgs out.
#include <cmath>
#include <string>
#include <vector>

#include "../cpu/row_ops.h"
#include "declaration.h"
#include "host.h"

namespace ew::ort {
namespace {

enum Input { kQuery, kKey, kValue, kSources };

const Port kInputs[] = {{"query", kFloat}, {"key", kFloat}, {"value", kFloat}, {"sources", kFloat, kVariadic}};
const Port kOutputs[] = {{"mixed", kFloat}};
const AttributeDeclaration kAttributes[] = {{"scale", "float", "null"}};
const Declaration kDeclaration = {"DepthMix", 1, kInputs, 4, kOutputs, 1, kAttributes, 1};

struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration;
  const Api& api;
  float scale;

  Kernel(const Api& host, const KernelInfo* info) : api(host) {
    scale = attribute(api, info, "scale", static_cast<const float*>(nullptr));
    if (!std::isfinite(scale)) fail("scale", std::to_string(scale), "a finite number");
  }

  static void expect_shapes(const Tensor* in, std::size_t count) {
    expect_shape("query", in[kQuery], {-1, -1, -1}, "[T, Hq, D]");
    const std::int64_t *query = in[kQuery].shape, tokens = query[0], dim = query[2];
    expect_shape("key", in[kKey], {tokens, -1, dim}, "[T, Hkv, D]");
    const std::int64_t kv_heads = in[kKey].shape[1];
    expect_shape("value", in[kValue], {tokens, kv_heads, -1}, "[T, Hkv, Dv]");
    if (kv_heads < 1 || query[1] < 1 || query[1] % kv_heads != 0)
      fail("query", std::to_string(query[1]) + " heads", "a multiple of the key's " + std::to_string(kv_heads));
    if (dim < 1 || in[kValue].shape[2] < 1) fail("query and value", "an empty head", "D and Dv of 1 or more");
    if ((count - kSources) % 2 != 0)
      fail("sources", std::to_string(count - kSources) + " tensors", "a key and a value of each source");
    for (std::size_t i = kSources; i < count; ++i) {
      const std::string name = "sources[" + std::to_string(i - kSources) + "]";
      if ((i - kSources) % 2 == 0)
        expect_shape(name.c_str(), in[i], {tokens, kv_heads, dim}, "[T, Hkv, D]");
      else
        expect_shape(name.c_str(), in[i], {tokens, kv_heads, in[kValue].shape[2]}, "[T, Hkv, Dv]");
    }
  }

  void compute(KernelContext* context) const {
    const std::size_t count = input_count(api, context);
    std::vector<Tensor> in(count);
    for (std::size_t i = 0; i < count; ++i) in[i] = input(api, context, i);
    expect_shapes(in.data(), count);
    std::vector<const float*> data;
    for (const Tensor& tensor : in) data.push_back(static_cast<const float*>(tensor.data));
    DepthMixArgs args{};
    args.query = data[kQuery];
    args.key = data[kKey];
    args.value = data[kValue];
    args.sources = data.data() + kSources;
    args.tokens = in[kQuery].shape[0];
    args.query_heads = in[kQuery].shape[1];
    args.kv_heads = in[kKey].shape[1];
    args.head_dim = in[kQuery].shape[2];
    args.value_dim = in[kValue].shape[2];
    args.source_count = static_cast<std::int64_t>(count - kSources) / 2;
    args.scale = scale;
    args.mixed = static_cast<float*>(output(api, context, 0, {args.tokens, args.kv_heads, args.value_dim}).data);
    depth_mix(args, HostThreads(api, context));
  }
};

}  // namespace

const DeclaredOp& depth_mix_op() {
  static const DeclaredOp op = declare<Kernel>(kDeclaration);
  return op;
}

}  // namespace ew::ort
