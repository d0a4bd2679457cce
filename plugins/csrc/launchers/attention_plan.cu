// Checks attention calls, and plans them: the kernels' view of a call, its split into parts, its workspace.
#include <algorithm>
#include <limits>

#include "launchers/attention_stages.h"

namespace ew::cuda {
namespace {

constexpr std::int64_t kMostParts = 64;
constexpr int kBlocksPerMultiprocessor = 4;  // of decoding, that are resident together

void expect_positive(const char* op, const char* name, std::int64_t got) {
  expect(got > 0 && got <= std::numeric_limits<std::int32_t>::max(), op, name, got, "1 or more");
}

void expect_count(const char* op, const char* name, std::int64_t got) {
  expect(got >= 0 && got <= std::numeric_limits<std::int32_t>::max(), op, name, got, "0 or more");
}

}  // namespace

AttentionPlan plan_attention(const EwAttention& call) {
  const std::int64_t group = call.query_heads / call.kv_heads;
  const std::int64_t queries = std::max<std::int64_t>(1, kDecodeLanes / group);
  AttentionPlan plan;
  plan.decoded_queries = static_cast<int>(std::min(queries, std::max<std::int64_t>(1, call.longest)));
  plan.has_prefill = call.longest * group > kDecodeLanes;
  const std::int64_t blocks = std::max<std::int64_t>(1, call.rows * call.kv_heads);
  const std::int64_t wanted = kBlocksPerMultiprocessor * multiprocessor_count() / blocks;
  const std::int64_t most = std::min(kMostParts, std::max<std::int64_t>(1, call.table_width));
  plan.parts = static_cast<int>(std::clamp<std::int64_t>(wanted, 1, most));
  return plan;
}

void check_attention(const char* op, const EwAttention& call) {
  expect_count(op, "tokens", call.tokens);
  expect_count(op, "rows", call.rows);
  expect_count(op, "longest", call.longest);
  expect(call.longest <= call.tokens, op, "longest", call.longest,
         "at most the " + std::to_string(call.tokens) + " tokens");
  expect_positive(op, "query_heads", call.query_heads);
  expect_positive(op, "kv_heads", call.kv_heads);
  expect(call.query_heads % call.kv_heads == 0, op, "query_heads", call.query_heads,
         "a multiple of the " + std::to_string(call.kv_heads) + " KV heads");
  expect(call.table_heads >= call.kv_heads, op, "table_heads", call.table_heads,
         "at least the " + std::to_string(call.kv_heads) + " KV heads");
  expect_positive(op, "table_width", call.table_width);
  expect_count(op, "window", call.window);
  expect(call.type == EW_HALF || call.type == EW_BFLOAT16, op, "type", call.type, "0 (half) or 1 (bfloat16)");
  if (!(call.softcap >= 0.0f)) refuse(op, "softcap", std::to_string(call.softcap), "0 (off) or more");
  if (!(call.scale == call.scale)) refuse(op, "scale", "NaN", "a number");
  if (call.tokens == 0) return;
  expect_pointer(op, "query_starts", call.query_starts);
  expect_pointer(op, "kv_lens", call.kv_lens);
  expect_pointer(op, "table", call.table);
  const std::pair<const char*, const void*> wide[] = {
      {"query", call.query}, {"key", call.key}, {"value", call.value}, {"output", call.output}};
  for (const auto& [name, pointer] : wide) {
    expect_pointer(op, name, pointer);
    expect_aligned(op, name, pointer);
  }
}

AttentionView view_of(const EwAttention& call) {
  AttentionView view{};
  view.starts = call.query_starts;
  view.kv_lens = call.kv_lens;
  view.table = call.table;
  view.sinks = call.sinks;
  view.output = static_cast<std::uint16_t*>(call.output);
  view.tokens = static_cast<int>(call.tokens);
  view.rows = static_cast<int>(call.rows);
  view.query_heads = static_cast<int>(call.query_heads);
  view.kv_heads = static_cast<int>(call.kv_heads);
  view.head_dim = static_cast<int>(call.head_dim);
  view.value_dim = static_cast<int>(call.value_dim);
  view.table_heads = static_cast<int>(call.table_heads);
  view.table_width = static_cast<int>(call.table_width);
  view.window = static_cast<int>(call.window);
  view.longest = static_cast<int>(call.longest);
  view.softcap = call.softcap;
  view.type = static_cast<Type>(call.type);
  return view;
}

float query_factor(const EwAttention& call) { return call.softcap > 0.0f ? call.scale : call.scale * kLog2E; }

DecodeParts take_parts(Workspace& workspace, const EwAttention& call, const AttentionPlan& plan) {
  DecodeParts parts;
  parts.parts = plan.parts;
  parts.queries = plan.decoded_queries;
  const std::int64_t lanes = plan.parts * call.rows * plan.decoded_queries * call.query_heads;
  parts.sums = workspace.take<float>(lanes * call.value_dim);
  parts.denominators = workspace.take<float>(2 * lanes);
  return parts;
}

}  // namespace ew::cuda
