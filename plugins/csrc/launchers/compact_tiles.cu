// ew_cuda_compact_tiles: checks a call and starts its kernel.
#include <limits>

#include "generated/calls/compact_tiles.h"
#include "kernels/policy/compact_tiles.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

using namespace compact_tiles;

constexpr const char* kOp = "CompactTiles";

void expect_range(const char* name, std::int64_t got, std::int64_t least, std::int64_t most) {
  expect(got >= least && got <= most, kOp, name, got, std::to_string(least) + " to " + std::to_string(most));
}

void check(const EwCompactTiles& call) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  expect_range("count", call.count, 0, kMost);
  expect_range("tile_count", call.tile_count, 0, kMost);
  expect_range("head_dim", call.head_dim, 1, 1 << 16);
  expect_range("value_dim", call.value_dim, 1, 1 << 16);
  expect_range("channels", call.channels, 0, 1 << 16);
  expect(call.kv_bits == 16 || call.kv_bits == 32, kOp, "kv_bits", call.kv_bits, "16 or 32");
}

Task task_of(const EwCompactTiles& call) {
  Task task{};
  task.tiles = static_cast<unsigned char*>(call.tiles);
  task.moves = call.moves;
  task.marks = call.marks;
  task.count = call.count;
  task.tile_bytes = tile_bytes(call.head_dim, call.value_dim, call.kv_bits);
  task.head_dim = static_cast<int>(call.head_dim);
  task.value_dim = static_cast<int>(call.value_dim);
  task.channels = static_cast<int>(call.channels);
  return task;
}

}  // namespace
}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int64_t ew_cuda_compact_tiles_workspace(const EwCompactTiles* call) {
  return guarded<int64_t>(-1, [call] {
    check(*call);
    return 0;
  });
}

int ew_cuda_compact_tiles(const EwCompactTiles* call, void*, int64_t, void* stream) {
  return guarded(-1, [&] {
    check(*call);
    if (call->count == 0) return 0;
    expect_tensor(kOp, "tiles", call->tiles);
    expect_pointer(kOp, "moves", call->moves);
    if (call->channels > 0) expect_pointer(kOp, "marks", call->marks);
    using namespace ew::compact_tiles;
    const auto kernel = call->kv_bits == 16 ? compact_tiles_kernel<std::uint16_t> : compact_tiles_kernel<std::uint32_t>;
    launch(kOp, kernel, Grid{(call->count + kMoves - 1) / kMoves}, kThreads, 0, stream, task_of(*call));
    return 0;
  });
}

}  // extern "C"
