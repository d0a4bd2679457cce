// Fills in a call of the HoldQueries kernel, except the output.
#pragma once

#include "generated/calls/hold_queries.h"
#include "ops/hold_queries.h"

namespace ew::ops::hold {

// type: EW_HALF or EW_BFLOAT16.
inline EwHoldQueries call_of(const Tensor* in, std::int32_t type) {
  EwHoldQueries call{};
  call.query = in[kQuery].data;
  call.query_starts = static_cast<const std::int32_t*>(in[kQueryStarts].data);
  call.slots = static_cast<const std::int32_t*>(in[kSlots].data);
  call.position_ids = static_cast<const std::int64_t*>(in[kPositionIds].data);
  call.tokens = in[kQuery].shape[0];
  call.rows = in[kSlots].shape[0];
  call.heads = in[kQuery].shape[1];
  call.dim = in[kQuery].shape[2];
  call.slot_count = in[kRing].shape[0];
  call.entries = in[kRing].shape[2];
  call.type = type;
  return call;
}

}  // namespace ew::ops::hold
