// ew_cuda_token_scores: checks a call, lays out its workspace and starts its kernels.
#include "generated/calls/token_scores.h"
#include "kernels/policy/decode_keys.cuh"
#include "kernels/policy/redundancy.cuh"
#include "kernels/policy/token_scores.cuh"
#include "launchers/stored_tokens.h"

namespace ew::cuda {
namespace {

using namespace token_scores;

constexpr const char* kOp = "TokenScores";
constexpr std::int64_t kMostSimilarDim = 1024;  // 16 keys of it take 64 KB of shared memory

void check_records(const EwTokenScores& call) {
  check_tables(kOp, call);
  const auto has_codes = [](std::int64_t bits) { return bits == 2 || bits == 4 || bits == 8; };
  expect(has_codes(call.k_bits), kOp, "k_bits", call.k_bits, "0 (no records), 2, 4 or 8");
  expect(has_codes(call.v_bits), kOp, "v_bits", call.v_bits, "2, 4 or 8");
  const bool is_power = (call.head_dim & (call.head_dim - 1)) == 0;
  expect(is_power && call.head_dim >= kMinHeadDim && call.head_dim <= kMaxHeadDim, kOp, "head_dim", call.head_dim,
         "a power of two from " + std::to_string(kMinHeadDim) + " to " + std::to_string(kMaxHeadDim));
  const std::int64_t bytes = record_bytes(call.head_dim, static_cast<int>(call.k_bits), static_cast<int>(call.v_bits));
  expect(call.tile_bytes == bytes, kOp, "tile_bytes", call.tile_bytes, std::to_string(bytes) + ", those of a record");
  expect_range(kOp, "exact_tiles", call.exact_tiles, 2, kMostInt);
}

void check(const EwTokenScores& call) {
  call.k_bits == 0 ? check_stored(kOp, call) : check_records(call);
  expect_range(kOp, "slot_count", call.slot_count, 0, kMostInt);
  expect_range(kOp, "entries", call.entries, 1, kMostInt);
  expect_range(kOp, "window", call.window, 1, call.entries);
  expect_range(kOp, "scope", call.scope, 0, 1);
  expect_range(kOp, "group", call.group, 0, 2);
  if (call.redundancy != nullptr) expect_range(kOp, "head_dim", call.head_dim, 1, kMostSimilarDim);
  if (!(call.threshold >= 0.0f && call.threshold <= 1.0f))
    refuse(kOp, "threshold", std::to_string(call.threshold), "0 to 1");
}

void check_tensors(const EwTokenScores& call) {
  expect_pointer(kOp, "ring", call.ring);
  expect_tensor(kOp, "tiles", call.tiles);
  expect_pointer(kOp, "slots", call.slots);
  expect_pointer(kOp, "kv_lens", call.kv_lens);
  expect_pointer(kOp, "table", call.table);
  expect_pointer(kOp, "last_positions", call.last_positions);
  expect_pointer(kOp, "importance", call.importance);
  if (call.k_bits == 0) return;
  expect_pointer(kOp, "exact", call.exact);
  expect_pointer(kOp, "encoded", call.encoded);
}

Task task_of(const EwTokenScores& call) {
  Task task{};
  task.view = key_view(call);
  task.ring = static_cast<const std::uint16_t*>(call.ring);
  task.slots = call.slots;
  task.last_positions = call.last_positions;
  task.importance = call.importance;
  task.redundancy = call.redundancy;
  task.entries = call.entries;
  task.window = static_cast<int>(call.window);
  task.causal = call.scope == 1;
  task.group = static_cast<Group>(call.group);
  task.threshold = call.threshold;
  return task;
}

std::int64_t take_workspace(Task& task, const EwTokenScores& call, void* base) {
  Workspace workspace(base);
  const std::int64_t heads = call.rows * call.kv_heads, tokens = heads * call.table_width * kTileTokens;
  const std::int64_t lanes = call.group == kMaxLogit ? 1 : call.query_heads / call.kv_heads;
  task.softmaxes = workspace.take<Softmax>(heads * call.window * lanes);
  if (call.redundancy != nullptr) {
    task.inverse = workspace.take<float>(tokens);
    task.own = workspace.take<float>(tokens);
    task.dropped = workspace.take<float>(tokens);
    task.with = workspace.take<std::int32_t>(tokens);
    task.sums = workspace.take<float>(heads * call.table_width * call.head_dim);
  }
  if (call.k_bits != 0) task.view.decoded = workspace.take<float>(tokens * call.head_dim);
  return workspace.used();
}

void start_decoding(const Task& task, const EwTokenScores& call, void* stream) {
  Records records{};
  records.task = task;
  records.exact = static_cast<const std::uint16_t*>(call.exact);
  records.encoded = call.encoded;
  records.exact_tiles = static_cast<int>(call.exact_tiles);
  records.k_bits = static_cast<int>(call.k_bits);
  launch(kOp, decode_keys_kernel, Grid{call.table_width, call.kv_heads, call.rows}, kWeightThreads, 0, stream, records);
}

template <Type type>
void start_importance(const Task& task, const EwTokenScores& call, void* stream) {
  const std::size_t shared = query_bytes(task.view);
  launch(kOp, window_kernel<type>, Grid{call.window, call.kv_heads, call.rows}, kWeightThreads, shared, stream, task);
  launch(kOp, importance_kernel<type>, Grid{call.table_width, call.kv_heads, call.rows}, kWeightThreads, shared, stream,
         task);
}

void start_redundancy(const Task& task, const EwTokenScores& call, void* stream) {
  const Grid tiles{call.table_width, call.kv_heads, call.rows};
  const std::size_t dim = sizeof(float) * static_cast<std::size_t>(call.head_dim), warps = kWeightThreads / kWarp;
  launch(kOp, unit_keys_kernel, tiles, kWeightThreads, sizeof(float) * kWeightThreads, stream, task);
  launch(kOp, dropped_kernel, tiles, kWeightThreads, dim * kBlockTokens + sizeof(int) * warps, stream, task);
  launch(kOp, means_kernel, tiles, kWeightThreads, dim, stream, task);
  launch(kOp, redundancy_kernel, Grid{call.kv_heads, call.rows}, kWeightThreads, 2 * sizeof(float) * warps, stream,
         task);
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_token_scores_workspace(const EwTokenScores* call) {
  return guarded(std::int64_t{-1}, [&] {
    check(*call);
    ew::token_scores::Task task = task_of(*call);
    return take_workspace(task, *call, nullptr);
  });
}

int ew_cuda_token_scores(const EwTokenScores* call, void* workspace, int64_t bytes, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    if (call->rows == 0 || call->table_width == 0) return 0;
    check_tensors(*call);
    ew::token_scores::Task task = task_of(*call);
    expect_workspace(kOp, workspace, bytes, take_workspace(task, *call, workspace));
    if (call->k_bits != 0) start_decoding(task, *call, stream);
    call->type == EW_HALF ? start_importance<ew::kHalf>(task, *call, stream)
                          : start_importance<ew::kBfloat16>(task, *call, stream);
    if (call->redundancy != nullptr) start_redundancy(task, *call, stream);
    return 0;
  });
}

}  // extern "C"
