// Fills in a call of the GreedySample kernel, except the output.
#pragma once

#include "generated/calls/greedy_sample.h"
#include "ops/greedy_sample.h"

namespace ew::ops::greedy {

inline EwGreedySample call_of(const Tensor* in) {
  EwGreedySample call{};
  call.logits = static_cast<const float*>(in[kLogits].data);
  call.rows = in[kLogits].shape[0];
  call.vocab = in[kLogits].shape[1];
  return call;
}

}  // namespace ew::ops::greedy
