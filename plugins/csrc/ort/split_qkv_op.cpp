// SplitQkv for ONNX Runtime: tensors and attributes in, SplitQkvArgs out.
#include <string>
#include <utility>

#include "../cpu/row_ops.h"
#include "declaration.h"
#include "host.h"

namespace ew::ort {
namespace {

enum Input { kPacked, kCos, kSin, kQueryNorm, kKeyNorm, kInputCount };

const Port kInputs[] = {{"packed", kFloat},
                        {"cos", kFloat, kOptional},
                        {"sin", kFloat, kOptional},
                        {"query_norm", kFloat, kOptional},
                        {"key_norm", kFloat, kOptional}};
const Port kOutputs[] = {{"query", kFloat}, {"key", kFloat}, {"value", kFloat}};
const AttributeDeclaration kAttributes[] = {{"query_heads", "int", "null"},
                                            {"kv_heads", "int", "null"},
                                            {"head_dim", "int", "null"},
                                            {"value_dim", "int", "null"},
                                            {"epsilon", "float", "1e-06"}};
const Declaration kDeclaration = {"SplitQkv", 1, kInputs, 5, kOutputs, 3, kAttributes, 5};

struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration;
  const Api& api;
  SplitQkvArgs constants{};  // what the attributes say

  Kernel(const Api& host, const KernelInfo* info) : api(host) {
    const float epsilon = 1e-6f;
    const std::pair<const char*, std::int64_t*> sizes[] = {{"query_heads", &constants.query_heads},
                                                           {"kv_heads", &constants.kv_heads},
                                                           {"head_dim", &constants.head_dim},
                                                           {"value_dim", &constants.value_dim}};
    for (const auto& [name, size] : sizes) {
      *size = attribute(api, info, name, static_cast<const std::int64_t*>(nullptr));
      if (*size < 1) fail(name, std::to_string(*size), "1 or more");
    }
    constants.epsilon = attribute(api, info, "epsilon", &epsilon);
    if (!(constants.epsilon >= 0.0f)) fail("epsilon", std::to_string(constants.epsilon), "0 or more");
  }

  void expect_shapes(const Tensor* in) const {
    const SplitQkvArgs& a = constants;
    expect_shape("packed", in[kPacked], {1, -1, a.width()}, "[1, T, (Hq + Hkv) D + Hkv Dv]");
    for (const auto& [first, second] : {std::pair{kCos, kSin}, std::pair{kQueryNorm, kKeyNorm}})
      if ((in[first].rank < 0) != (in[second].rank < 0))
        fail(kInputs[second].name, "only one of the two",
             std::string("both or neither of it and ") + kInputs[first].name);
    if (in[kCos].rank >= 0) {
      expect_shape("cos", in[kCos], {1, in[kPacked].shape[1], -1}, "[1, T, R]");
      expect_shape("sin", in[kSin], {1, in[kPacked].shape[1], in[kCos].shape[2]}, "[1, T, R]");
      if (2 * in[kCos].shape[2] > a.head_dim)
        fail("cos", "R = " + std::to_string(in[kCos].shape[2]), "at most half of D = " + std::to_string(a.head_dim));
    }
    for (Input norm : {kQueryNorm, kKeyNorm})
      if (in[norm].rank >= 0) expect_shape(kInputs[norm].name, in[norm], {a.head_dim}, "[D]");
  }

  void compute(KernelContext* context) const {
    Tensor in[kInputCount];
    for (int i = 0; i < kInputCount; ++i) in[i] = input(api, context, static_cast<std::size_t>(i));
    expect_shapes(in);
    SplitQkvArgs args = constants;
    args.packed = static_cast<const float*>(in[kPacked].data);
    args.cos = static_cast<const float*>(in[kCos].data);
    args.sin = static_cast<const float*>(in[kSin].data);
    args.query_norm = static_cast<const float*>(in[kQueryNorm].data);
    args.key_norm = static_cast<const float*>(in[kKeyNorm].data);
    args.tokens = in[kPacked].shape[1];
    args.half = in[kCos].rank >= 0 ? in[kCos].shape[2] : 0;
    args.query = result(context, 0, args.tokens, args.query_heads, args.head_dim);
    args.key = result(context, 1, args.tokens, args.kv_heads, args.head_dim);
    args.value = result(context, 2, args.tokens, args.kv_heads, args.value_dim);
    split_qkv(args, HostThreads(api, context));
  }

  float* result(KernelContext* context, std::size_t index, std::int64_t tokens, std::int64_t heads,
                std::int64_t size) const {
    return static_cast<float*>(output(api, context, index, {tokens, heads, size}).data);
  }
};

}  // namespace

const DeclaredOp& split_qkv_op() {
  static const DeclaredOp op = declare<Kernel>(kDeclaration);
  return op;
}

}  // namespace ew::ort
