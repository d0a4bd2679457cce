// Fills in a call of the ClpEmit kernels, except the outputs.
#pragma once

#include "generated/calls/clp_emit.h"
#include "ops/clp_emit.h"

namespace ew::ops::clp {

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data);
}

// type: EW_HALF or EW_BFLOAT16.
inline EwClpEmit call_of(const Attributes& attributes, const Tensor* in, std::int32_t type) {
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
  call.extra = attributes.extra();
  call.inner = in[kUpWeight].shape[1];
  call.vocab = in[kOutBias].shape[1];
  call.tau = attributes.tau;
  call.activation = static_cast<std::int32_t>(attributes.activation);
  call.residual = static_cast<std::int32_t>(attributes.residual);
  call.type = type;
  return call;
}

}  // namespace ew::ops::clp
