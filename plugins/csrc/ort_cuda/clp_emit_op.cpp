// ClpEmit for ONNX Runtime's CUDA provider.
#include "../ort/clp_emit_signature.h"
#include "device_call.h"

namespace ew::ort {
namespace {

using namespace clp;

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data);
}

template <ElementType kType>
struct Kernel {
  static constexpr const Declaration& declaration = kDeclaration<kType>;
  const Api& api;
  Attributes attributes;
  DeviceMemory memory;

  Kernel(const Api& host, const KernelInfo* info) : api(host), attributes(host, info), memory(host, info) {}

  EwClpEmit call_of(const Tensor* in) const {
    EwClpEmit call{};
    call.hidden = in[kHidden].data;
    call.greedy = data<std::int64_t>(in[kGreedy]);
    call.classifier_weight = data<float>(in[kClassifierWeight]);
    call.classifier_bias = data<float>(in[kClassifierBias]);
    call.up_weight = in[kUpWeight].data;
    call.up_bias = in[kUpBias].data;
    call.out_bias = in[kOutBias].data;
    call.out_weight = in[kOutWeight].data;
    call.out_codes = data<std::int8_t>(in[kOutCodes]);
    call.out_scales = data<float>(in[kOutScales]);
    call.sample_rows = data<std::int64_t>(in[kSampleRows]);
    call.query_starts = data<std::int32_t>(in[kQueryStarts]);
    call.sequences = call.sample_rows != nullptr ? in[kQueryStarts].shape[0] - 1 : 0;
    call.rows = in[kHidden].shape[0];
    call.size = in[kHidden].shape[1];
    call.classes = in[kClassifierWeight].shape[0];
    call.extra = attributes.extra;
    call.inner = in[kUpWeight].shape[1];
    call.vocab = in[kOutBias].shape[1];
    call.tau = attributes.tau;
    call.activation = attributes.silu;
    call.residual = attributes.residual;
    call.type = kCallType<kType>;
    return call;
  }

  void compute(KernelContext* context) const {
    Tensor in[kInputCount];
    for (int i = 0; i < kInputCount; ++i) in[i] = input(api, context, static_cast<std::size_t>(i));
    expect_shapes(attributes, in);
    EwClpEmit call = call_of(in);
    call.tokens = static_cast<std::int64_t*>(output(api, context, 0, {call.rows, call.extra + 1}).data);
    call.counts = static_cast<std::int64_t*>(output(api, context, 1, {call.rows}).data);
    start(api, context, memory, call, ew_cuda_clp_emit_workspace, ew_cuda_clp_emit);
  }
};

}  // namespace

const DeclaredOp& clp_emit_op(ElementType type) { return op_of<Kernel>(type); }

}  // namespace ew::ort
