// ew_cuda_kvarn_attention: checks a call, lays out its workspace and starts its stages.
#include "generated/calls/kvarn_attention.h"
#include "kernels/kvarn/kvarn_prepare.cuh"
#include "launchers/attention_stages.h"

namespace ew::cuda {
namespace {

constexpr const char* kOp = "KVarNAttention";

void check_flag(const char* name, std::int32_t got) { expect(got == 0 || got == 1, kOp, name, got, "0 or 1"); }

void check(const EwKVarNAttention& call) {
  const EwAttention& a = call.attention;
  check_attention(kOp, a);
#define EW_IS(d) a.head_dim == d ||
#define EW_NAME(d) " " EW_TEXT(d)
  expect(EW_KVARN_ATTENTION_DIMS(EW_IS) false, kOp, "head_dim", a.head_dim, "one of" EW_KVARN_ATTENTION_DIMS(EW_NAME));
#undef EW_IS
#undef EW_NAME
  expect(a.value_dim == a.head_dim, kOp, "value_dim", a.value_dim, "head_dim, " + std::to_string(a.head_dim));
#define EW_IS(k, v) (call.k_bits == k && call.v_bits == v) ||
#define EW_NAME(k, v) " " EW_TEXT(k) " and " EW_TEXT(v) ","
  if (!(EW_KVARN_ATTENTION_BITS(EW_IS) false))
    refuse(kOp, "k_bits and v_bits", std::to_string(call.k_bits) + " and " + std::to_string(call.v_bits),
           "one of" EW_KVARN_ATTENTION_BITS(EW_NAME) " as plugins/ops/kvarn_attention.py lists");
#undef EW_IS
#undef EW_NAME
  expect(call.exact_tiles >= 2, kOp, "exact_tiles", call.exact_tiles, "2 or more: the sink and the newest one");
  expect(call.iterations >= 0, kOp, "iterations", call.iterations, "0 or more");
  check_flag("robust", call.robust);
  check_flag("rotate_values", call.rotate_values);
  if (a.tokens == 0) return;
  expect_pointer(kOp, "tiles", call.tiles);
  expect_aligned(kOp, "tiles", call.tiles);
  expect_pointer(kOp, "exact", call.exact);
  expect_aligned(kOp, "exact", call.exact);
  expect_pointer(kOp, "slots", call.slots);
  expect_pointer(kOp, "encoded_before", call.encoded_before);
  expect_pointer(kOp, "encoded_after", call.encoded_after);
  expect(call.record_count > 0, kOp, "record_count", call.record_count, "1 or more");
  expect(call.slot_count >= a.rows, kOp, "slot_count", call.slot_count, "one for each row at least");
}

struct Memory {
  AttentionPlan plan;
  std::uint16_t *query, *keys, *values;
  DecodeParts parts;
  std::int64_t bytes;

  Memory(const EwKVarNAttention& call, void* base) : plan(plan_attention(call.attention)) {
    const EwAttention& a = call.attention;
    ++plan.parts;  // one for exact tiles and new tokens, the others for records
    Workspace workspace(base);
    query = workspace.take<std::uint16_t>(a.tokens * a.query_heads * a.head_dim);
    keys = workspace.take<std::uint16_t>(a.tokens * a.kv_heads * a.head_dim);
    values = workspace.take<std::uint16_t>(a.tokens * a.kv_heads * a.head_dim);
    parts = take_parts(workspace, a, plan);
    bytes = workspace.used();
  }
};

AttentionView kvarn_view(const EwKVarNAttention& call, const Memory& memory) {
  AttentionView view = view_of(call.attention);
  view.query = memory.query;
  view.tiles = static_cast<unsigned char*>(call.tiles);
  view.tile_bytes = record_bytes(call.attention.head_dim, call.k_bits, call.v_bits);
  view.exact = static_cast<std::uint16_t*>(call.exact);
  view.slots = call.slots;
  view.encoded_before = call.encoded_before;
  view.encoded_after = call.encoded_after;
  view.fresh_keys = memory.keys;
  view.fresh_values = memory.values;
  view.exact_tiles = static_cast<int>(call.exact_tiles);
  return view;
}

void prepare(const EwKVarNAttention& call, const AttentionView& view, const Memory& memory, void* stream) {
  const EwAttention& a = call.attention;
  PrepareArguments args{};
  args.view = view;
  args.query = static_cast<const std::uint16_t*>(a.query);
  args.key = static_cast<const std::uint16_t*>(a.key);
  args.value = static_cast<const std::uint16_t*>(a.value);
  args.prepared_query = memory.query;
  args.fresh_keys = memory.keys;
  args.fresh_values = memory.values;
  args.query_factor = query_factor(a);
  args.rotate_values = call.rotate_values != 0;
  switch (a.head_dim) {
#define EW_CASE(d) \
  case d:          \
    return launch(kOp, prepare_kvarn_kernel<d>, Grid{a.tokens}, kPrepareThreads, 0, stream, args);
    EW_KVARN_ATTENTION_DIMS(EW_CASE)
#undef EW_CASE
  }
}

void run(const EwKVarNAttention& call, const Memory& memory, void* stream) {
  const AttentionView view = kvarn_view(call, memory);
  const TileBits bits{call.k_bits, call.v_bits};
  prepare(call, view, memory, stream);
  decode(kOp, view, bits, memory.parts, stream);
  if (memory.plan.has_prefill) prefill(kOp, view, bits, stream);
  finish(kOp, view, memory.parts, call.rotate_values != 0, stream);
  store(view, Encoding{bits, static_cast<int>(call.iterations), call.robust != 0}, stream);
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_kvarn_attention_workspace(const EwKVarNAttention* call) {
  return guarded<int64_t>(-1, [call] {
    check(*call);
    return Memory(*call, nullptr).bytes;
  });
}

int ew_cuda_kvarn_attention(const EwKVarNAttention* call, void* workspace, int64_t bytes, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    const Memory memory(*call, workspace);
    expect_workspace(kOp, workspace, bytes, memory.bytes);
    if (call->attention.tokens > 0) run(*call, memory, stream);
    return 0;
  });
}

}  // extern "C"
