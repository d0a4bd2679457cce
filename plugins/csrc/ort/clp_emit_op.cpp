// ClpEmit for ONNX Runtime: tensors and attributes in, ClpEmitArgs out.
#include <cmath>
#include <string>

#include "../cpu/clp_emit.h"
#include "declaration.h"
#include "host.h"

namespace ew::ort {
namespace {

enum Input {
  kHidden,
  kGreedy,
  kClassifierWeight,
  kClassifierBias,
  kUpWeight,
  kUpBias,
  kOutBias,
  kOutWeight,
  kOutCodes,
  kOutScales,
  kSampleRows,
  kQueryStarts,
  kInputCount
};

const Port kInputs[] = {{"hidden", kFloat},
                        {"greedy", kInt64},
                        {"classifier_weight", kFloat},
                        {"classifier_bias", kFloat},
                        {"up_weight", kFloat},
                        {"up_bias", kFloat},
                        {"out_bias", kFloat},
                        {"out_weight", kFloat, kOptional},
                        {"out_codes", kInt8, kOptional},
                        {"out_scales", kFloat, kOptional},
                        {"sample_rows", kInt64, kOptional},
                        {"query_starts", kInt32, kOptional}};
const Port kOutputs[] = {{"tokens", kInt64}, {"counts", kInt64}};
const AttributeDeclaration kAttributes[] = {
    {"k", "int", "null"}, {"tau", "float", "null"}, {"activation", "int", "0"}, {"residual", "int", "0"}};
const Declaration kDeclaration = {"ClpEmit", 1, kInputs, kInputCount, kOutputs, 2, kAttributes, 4};
constexpr std::int64_t kMostTokens = 16;

struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration;
  const Api& api;
  ClpEmitArgs constants{};  // what the attributes say
  mutable Pool<ClpScratch> pool;

  Kernel(const Api& host, const KernelInfo* info) : api(host) {
    const std::int64_t off = 0;
    const std::int64_t k = attribute(api, info, "k", static_cast<const std::int64_t*>(nullptr));
    if (k < 2 || k > kMostTokens) fail("k", std::to_string(k), "2 to " + std::to_string(kMostTokens));
    constants.extra = k - 1;
    constants.tau = attribute(api, info, "tau", static_cast<const float*>(nullptr));
    if (std::isnan(constants.tau)) fail("tau", "NaN", "a number");
    constants.silu = flag(info, "activation", off);
    constants.residual = flag(info, "residual", off);
  }

  bool flag(const KernelInfo* info, const char* name, std::int64_t fallback) const {
    const std::int64_t value = attribute(api, info, name, &fallback);
    if (value != 0 && value != 1) fail(name, std::to_string(value), "0 or 1");
    return value == 1;
  }

  void expect_shapes(const Tensor* in) const {
    const std::int64_t extra = constants.extra;
    expect_shape("hidden", in[kHidden], {-1, -1}, "[N, d]");
    const std::int64_t rows = in[kHidden].shape[0], size = in[kHidden].shape[1];
    expect_shape("greedy", in[kGreedy], {rows}, "[N]");
    expect_shape("classifier_weight", in[kClassifierWeight], {-1, size}, "[classes, d]");
    if (in[kClassifierWeight].shape[0] < 1) fail("classifier_weight", "no classes", "1 or more");
    expect_shape("classifier_bias", in[kClassifierBias], {in[kClassifierWeight].shape[0]}, "[classes]");
    expect_shape("up_weight", in[kUpWeight], {extra, -1, size}, "[k - 1, h, d]");
    const std::int64_t inner = in[kUpWeight].shape[1];
    if (constants.residual && inner != size)
      fail("up_weight", "h = " + std::to_string(inner), "d = " + std::to_string(size) + ", because residual = 1");
    expect_shape("up_bias", in[kUpBias], {extra, inner}, "[k - 1, h]");
    expect_shape("out_bias", in[kOutBias], {extra, -1}, "[k - 1, V]");
    const std::int64_t vocab = in[kOutBias].shape[1];
    if (vocab < 1) fail("out_bias", "V = 0", "1 or more");
    if ((in[kOutWeight].rank < 0) == (in[kOutCodes].rank < 0))
      fail("out_weight", in[kOutWeight].rank < 0 ? "neither" : "both", "either it or out_codes");
    if ((in[kOutCodes].rank < 0) != (in[kOutScales].rank < 0))
      fail("out_scales", "only one of the two", "both or neither of it and out_codes");
    if ((in[kSampleRows].rank < 0) != (in[kQueryStarts].rank < 0))
      fail("query_starts", "only one of the two", "both or neither of it and sample_rows");
    if (in[kSampleRows].rank >= 0) {
      expect_shape("sample_rows", in[kSampleRows], {rows}, "[N]");
      expect_shape("query_starts", in[kQueryStarts], {-1}, "[B + 1]");
      if (in[kQueryStarts].shape[0] < 1) fail("query_starts", "nothing", "at least one start");
    }
    if (in[kOutCodes].rank < 0) {
      expect_shape("out_weight", in[kOutWeight], {extra, vocab, inner}, "[k - 1, V, h]");
    } else {
      expect_shape("out_codes", in[kOutCodes], {extra, vocab, inner}, "[k - 1, V, h]");
      expect_shape("out_scales", in[kOutScales], {extra, vocab}, "[k - 1, V]");
    }
  }

  void compute(KernelContext* context) const {
    Tensor in[kInputCount];
    for (int i = 0; i < kInputCount; ++i) in[i] = input(api, context, static_cast<std::size_t>(i));
    expect_shapes(in);
    auto floats = [&](Input i) { return static_cast<const float*>(in[i].data); };
    ClpEmitArgs args = constants;
    args.hidden = floats(kHidden);
    args.greedy = static_cast<const std::int64_t*>(in[kGreedy].data);
    args.classifier_weight = floats(kClassifierWeight);
    args.classifier_bias = floats(kClassifierBias);
    args.up_weight = floats(kUpWeight);
    args.up_bias = floats(kUpBias);
    args.out_bias = floats(kOutBias);
    args.out_weight = floats(kOutWeight);
    args.out_codes = static_cast<const std::int8_t*>(in[kOutCodes].data);
    args.out_scales = floats(kOutScales);
    args.sample_rows = static_cast<const std::int64_t*>(in[kSampleRows].data);
    args.query_starts = static_cast<const std::int32_t*>(in[kQueryStarts].data);
    args.sequences = args.sample_rows ? in[kQueryStarts].shape[0] - 1 : 0;
    args.rows = in[kHidden].shape[0];
    args.size = in[kHidden].shape[1];
    args.classes = in[kClassifierWeight].shape[0];
    args.inner = in[kUpWeight].shape[1];
    args.vocab = in[kOutBias].shape[1];
    args.tokens = static_cast<std::int64_t*>(output(api, context, 0, {args.rows, args.extra + 1}).data);
    args.counts = static_cast<std::int64_t*>(output(api, context, 1, {args.rows}).data);
    Pool<ClpScratch>::Loan scratch(pool);
    clp_emit(args, *scratch, HostThreads(api, context));
  }
};

}  // namespace

const DeclaredOp& clp_emit_op() {
  static const DeclaredOp op = declare<Kernel>(kDeclaration);
  return op;
}

}  // namespace ew::ort
