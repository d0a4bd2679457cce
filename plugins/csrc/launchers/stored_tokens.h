// The checks and the view of the keys that TokenScores and MarkTokens have in common.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "kernels/policy/query_weights.cuh"
#include "launchers/refuse.h"

namespace ew::cuda {

constexpr std::int64_t kMostInt = std::numeric_limits<std::int32_t>::max();
constexpr std::int64_t kMostBlocks = 65535;          // along y and z of a grid
constexpr std::int64_t kMostGroupNumbers = 1 << 14;  // of the queries of a group: 64 KB of shared memory

inline void expect_range(const char* op, const char* name, std::int64_t got, std::int64_t least, std::int64_t most) {
  expect(got >= least && got <= most, op, name, got, std::to_string(least) + " to " + std::to_string(most));
}

template <class Call>
void check_tables(const char* op, const Call& call) {
  expect_type(op, call.type);
  expect_range(op, "rows", call.rows, 0, kMostBlocks);
  expect_range(op, "kv_heads", call.kv_heads, 1, kMostBlocks);
  expect(call.query_heads >= 1 && call.query_heads % call.kv_heads == 0, op, "query_heads", call.query_heads,
         "a multiple of the " + std::to_string(call.kv_heads) + " KV heads");
  expect_range(op, "head_dim", call.head_dim, 1, kMostGroupNumbers / (call.query_heads / call.kv_heads));
  expect_range(op, "table_heads", call.table_heads, call.kv_heads, kMostInt);
  expect_range(op, "table_width", call.table_width, 0, kMostInt / kTileTokens);
  expect_range(op, "tile_count", call.tile_count, 0, kMostInt);
  if (!std::isfinite(call.scale)) refuse(op, "scale", std::to_string(call.scale), "a finite number");
  if (!(call.softcap >= 0.0f) || !std::isfinite(call.softcap))
    refuse(op, "softcap", std::to_string(call.softcap), "0 (off) or a finite number above");
}

template <class Call>
void check_stored(const char* op, const Call& call) {
  check_tables(op, call);
  expect(call.kv_bits == 16, op, "kv_bits", call.kv_bits, "16: caches on a GPU hold halves");
  expect(call.tile_bytes > tile_bytes(call.head_dim, 0, 16) && call.tile_bytes % tile_bytes(1, 0, 16) == 0, op,
         "tile_bytes", call.tile_bytes, "those of keys of " + std::to_string(call.head_dim) + " and values");
}

template <class Call>
KeyView key_view(const Call& call) {
  KeyView view{};
  view.tiles = static_cast<const unsigned char*>(call.tiles);
  view.kv_lens = call.kv_lens;
  view.table = call.table;
  view.sinks = call.sinks;
  view.tile_bytes = call.tile_bytes;
  view.table_heads = static_cast<int>(call.table_heads);
  view.table_width = static_cast<int>(call.table_width);
  view.kv_heads = static_cast<int>(call.kv_heads);
  view.group = static_cast<int>(call.query_heads / call.kv_heads);
  view.head_dim = static_cast<int>(call.head_dim);
  view.scale = call.scale;
  view.softcap = call.softcap;
  return view;
}

// Shared memory of a block that has the queries of a group, and two floats a warp.
inline std::size_t query_bytes(const KeyView& view) {
  return sizeof(float) * static_cast<std::size_t>(view.group * view.head_dim + 2 * kWeightThreads / kWarp);
}

}  // namespace ew::cuda
