// The stored keys of one layer, as the ops of cache policies read them, and the checks of their tables.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/threads/fault.h"
#include "layout/tile.h"

namespace ew {

// kv_lens and table point at the node's layer, of whose table_heads heads the first kv_heads count.
struct StoredKeys {
  const unsigned char* tiles = nullptr;   // [tile_count, tile_bytes]
  const std::int32_t* kv_lens = nullptr;  // [rows, table_heads]
  const std::int32_t* table = nullptr;    // [rows, table_heads, table_width]
  std::int64_t tile_count = 0, tile_bytes = 0, rows = 0, head_dim = 0, table_heads = 0, table_width = 0;

  std::int64_t held(std::int64_t row, std::int64_t head) const { return kv_lens[row * table_heads + head]; }
  const std::int32_t* tile_ids(std::int64_t row, std::int64_t head) const {
    return table + (row * table_heads + head) * table_width;
  }
};

inline std::int64_t tiles_of(std::int64_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

// The first thing wrong with the length of a head that gets `fresh` new tokens.
inline std::string check_length(const StoredKeys& stored, std::int64_t row, std::int64_t head, std::int64_t fresh) {
  const std::int64_t held = stored.held(row, head);
  if (held < 0) return expected(at("kv_lens", row, head), held, "0 or more");
  if (held + fresh > stored.table_width * kTileTokens)
    return expected(at("kv_lens", row, head), held,
                    "room for " + std::to_string(fresh) + " new tokens in M = " + std::to_string(stored.table_width) +
                        " tiles of " + std::to_string(kTileTokens));
  return {};
}

// The first thing wrong with the ids of the tiles [begin, end) of a head.
inline std::string check_ids(const StoredKeys& stored, std::int64_t row, std::int64_t head, std::int64_t begin,
                             std::int64_t end) {
  for (std::int64_t tile = begin; tile < end; ++tile) {
    const std::int64_t id = stored.tile_ids(row, head)[tile];
    if (id < 0 || id >= stored.tile_count)
      return expected(at("tile_table", row, head) + "[" + std::to_string(tile) + "]", id,
                      "a tile id in [0, " + std::to_string(stored.tile_count) + ")");
  }
  return {};
}

// The first thing wrong with the length of a head that gets `fresh` new tokens, or with the ids of its tiles.
inline std::string check_stored(const StoredKeys& stored, std::int64_t row, std::int64_t head, std::int64_t fresh) {
  const std::string fault = check_length(stored, row, head, fresh);
  return fault.empty() ? check_ids(stored, row, head, 0, tiles_of(stored.held(row, head) + fresh)) : fault;
}

}  // namespace ew
