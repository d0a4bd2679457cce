// ew_cuda_paged_attention: checks a call, lays out its workspace and starts its stages.
#include "generated/calls/paged_attention.h"
#include "kernels/attention/paged_prepare.cuh"
#include "launchers/attention_stages.h"

namespace ew::cuda {
namespace {

constexpr const char* kOp = "PagedAttention";

void check(const EwPagedAttention& call) {
  const EwAttention& a = call.attention;
  check_attention(kOp, a);
  expect(call.kv_bits == 16, kOp, "kv_bits", call.kv_bits, "16: caches on a GPU hold halves");
#define EW_IS(k, v) (a.head_dim == k && a.value_dim == v) ||
#define EW_NAME(k, v) " " EW_TEXT(k) " and " EW_TEXT(v) ","
  if (!(EW_PAGED_ATTENTION_DIMS(EW_IS) false))
    refuse(kOp, "head sizes", std::to_string(a.head_dim) + " and " + std::to_string(a.value_dim),
           "of keys and values, one of" EW_PAGED_ATTENTION_DIMS(EW_NAME) " as plugins/ops/paged_attention.py lists");
#undef EW_IS
#undef EW_NAME
  if (a.tokens == 0) return;
  expect_pointer(kOp, "tiles", call.tiles);
  expect_aligned(kOp, "tiles", call.tiles);
  expect(call.tile_count > 0, kOp, "tile_count", call.tile_count, "1 or more");
}

struct Memory {
  AttentionPlan plan;
  std::uint16_t* query;
  DecodeParts parts;
  std::int64_t bytes;

  Memory(const EwPagedAttention& call, void* base) : plan(plan_attention(call.attention)) {
    const EwAttention& a = call.attention;
    Workspace workspace(base);
    query = workspace.take<std::uint16_t>(a.tokens * a.query_heads * a.head_dim);
    parts = take_parts(workspace, a, plan);
    bytes = workspace.used();
  }
};

void run(const EwPagedAttention& call, const Memory& memory, void* stream) {
  const EwAttention& a = call.attention;
  AttentionView view = view_of(a);
  view.query = memory.query;
  view.tiles = static_cast<unsigned char*>(call.tiles);
  view.tile_bytes = tile_bytes(a.head_dim, a.value_dim, call.kv_bits);
  PrepareArguments prepare{};
  prepare.view = view;
  prepare.query = static_cast<const std::uint16_t*>(a.query);
  prepare.key = static_cast<const std::uint16_t*>(a.key);
  prepare.value = static_cast<const std::uint16_t*>(a.value);
  prepare.prepared_query = memory.query;
  prepare.query_factor = query_factor(a);
  launch(kOp, prepare_paged_kernel, Grid{a.tokens}, kPrepareThreads, 0, stream, prepare);
  decode(kOp, view, TileBits{}, memory.parts, stream);
  if (memory.plan.has_prefill) prefill(kOp, view, TileBits{}, stream);
  finish(kOp, view, memory.parts, false, stream);
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_paged_attention_workspace(const EwPagedAttention* call) {
  return guarded<int64_t>(-1, [call] {
    check(*call);
    return Memory(*call, nullptr).bytes;
  });
}

int ew_cuda_paged_attention(const EwPagedAttention* call, void* workspace, int64_t bytes, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    const Memory memory(*call, workspace);
    expect_workspace(kOp, workspace, bytes, memory.bytes);
    if (call->attention.tokens > 0) run(*call, memory, stream);
    return 0;
  });
}

}  // extern "C"
