// Starts stage `finish` of attention.
#include "generated/calls/kvarn_attention.h"
#include "generated/calls/paged_attention.h"
#include "kernels/attention/attention_finish.cuh"
#include "launchers/attention_stages.h"

namespace ew::cuda {

void finish(const char* op, const AttentionView& view, const DecodeParts& parts, bool rotate_values, void* stream) {
  const FinishArguments args{view, parts};
  const Grid grid{view.tokens, (view.query_heads + kFinishWarps - 1) / kFinishWarps};
  const auto start = [&](void (*kernel)(const FinishArguments)) {
    launch(op, kernel, grid, kFinishWarps * kWarp, 0, stream, args);
  };
  switch (rotate_values ? -view.value_dim : view.value_dim) {
#define EW_CASE(k, v) \
  case v:             \
    return start(finish_kernel<v, false>);
    EW_PAGED_ATTENTION_DIMS(EW_CASE)  // KVarN's sizes are among them
#undef EW_CASE
#define EW_CASE(d) \
  case -d:         \
    return start(finish_kernel<d, true>);
    EW_KVARN_ATTENTION_DIMS(EW_CASE)
#undef EW_CASE
  }
  expect(false, op, "value_dim", view.value_dim, "one that stage `finish` is compiled for");
}

}  // namespace ew::cuda
