// TokenScores on the CPU.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/policy/stored_keys.h"
#include "cpu/simd/variants.h"
#include "cpu/threads/parallel.h"
#include "cpu/threads/scratch.h"
#include "generated/attributes/token_scores.h"
#include "layout/kvarn_record.h"

namespace ew {

// One call of TokenScores: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct TokenScoresArgs : declared::token_scores::AttributeValues {
  const float* ring = nullptr;  // [slot_count, query_heads, entries, head_dim]
  StoredKeys stored = {};
  const std::int32_t* slots = nullptr;
  const std::int64_t* last_positions = nullptr;
  const float* sinks = nullptr;           // [query_heads] or null
  float* importance = nullptr;            // [rows, kv_heads, table_width * kTileTokens]
  float* similar = nullptr;               // the redundancy, of the same shape, or null
  const Half* exact = nullptr;            // of a cache of records: [slot_count, kv_heads, exact_tiles, exact_tile_size]
  const std::int32_t* encoded = nullptr;  // [rows, table_heads]: tokens in records, with those of the first tile
  std::int64_t query_heads = 0, slot_count = 0, entries = 0, exact_tiles = 0;

  bool has_records() const { return k_bits > 0; }
  std::int64_t encoded_of(std::int64_t row, std::int64_t head) const {
    return encoded[row * stored.table_heads + head];
  }
  bool is_record(std::int64_t row, std::int64_t head, std::int64_t tile) const {
    return tile > 0 && tile < encoded_of(row, head) / kTileTokens;
  }
  // The keys of an exact tile of a cache of records.
  const Half* exact_keys(std::int64_t row, std::int64_t head, std::int64_t tile) const {
    const std::int64_t place = tile == 0 ? 0 : ring_place(tile, exact_tiles);
    return exact + ((slots[row] * kv_heads + head) * exact_tiles + place) * exact_tile_size(stored.head_dim);
  }

  std::int64_t group_size() const { return query_heads / kv_heads; }
  std::int64_t padded() const { return stored.table_width * kTileTokens; }
  bool has_scores(std::int64_t row, std::int64_t head) const { return stored.held(row, head) > window; }
  // Tokens of a head that have a score.
  std::int64_t scored(std::int64_t row, std::int64_t head) const {
    return scope == 0 ? stored.held(row, head) - window : stored.held(row, head);
  }
  float* importance_of(std::int64_t row, std::int64_t head) const {
    return importance + (row * kv_heads + head) * padded();
  }
};

// Queries of a window that are scored together, and the floats that this takes.
std::int64_t window_queries(const TokenScoresArgs& args, std::int64_t most_lanes);
std::int64_t importance_floats(const TokenScoresArgs& args);

constexpr std::int64_t kScoreLanes = 8;  // the most of every instruction set

// What the redundancy of one row and KV head is made of; arrays of padded() entries.
struct Similarity {
  float* inverse;      // 1 / (norm of the key + 1e-8); 1 at tokens that do not exist
  float* own;          // a unit key's product with itself
  float* dropped;      // the cosine of each key that does not count
  std::int32_t* with;  // and the key that it is with
  float* sum;          // [head_dim]: of the unit keys
};

// The importance of one row and KV head; scratch of importance_floats().
EW_CPU_KERNEL(void, importance_kernel, const TokenScoresArgs&, std::int64_t row, std::int64_t head, float* scratch);
// The keys of a tile of a cache of records as floats, decoded and turned back, laid out as those of a float32 tile.
EW_CPU_KERNEL(void, decode_keys_kernel, const TokenScoresArgs&, std::int64_t row, std::int64_t head, std::int64_t tile,
              float* keys);
// inverse, own and sum.
EW_CPU_KERNEL(void, unit_keys_kernel, const TokenScoresArgs&, std::int64_t row, std::int64_t head, const Similarity&);
// dropped and with, for keys [begin, end); begin is a multiple of kTileTokens; scratch of kScoreLanes * (head_dim +
// kTileTokens) floats.
EW_CPU_KERNEL(void, dropped_cosines_kernel, const TokenScoresArgs&, std::int64_t row, std::int64_t head,
              std::int64_t begin, std::int64_t end, const Similarity&, float* scratch);
// The redundancy, from all of these.
EW_CPU_KERNEL(void, redundancy_kernel, const TokenScoresArgs&, std::int64_t row, std::int64_t head, const Similarity&);

// The first thing wrong with the contents of a call, as "name: got X, expected Y"; empty when there is none.
std::string find_fault(const TokenScoresArgs& args);

// A whole call, divided among the host's threads; a row's scores do not depend on the others. Throws std::bad_alloc.
void token_scores(const TokenScoresArgs& args, const Parallel& parallel);

}  // namespace ew
