// MarkTokens on the CPU.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/policy/stored_keys.h"
#include "cpu/simd/variants.h"
#include "cpu/threads/parallel.h"
#include "cpu/threads/scratch.h"
#include "generated/attributes/mark_tokens.h"

namespace ew {

// One call of MarkTokens: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct MarkTokensArgs : declared::mark_tokens::AttributeValues {
  const float* query = nullptr;  // [tokens, query_heads, head_dim]
  StoredKeys stored = {};
  const std::int32_t* starts = nullptr;
  const std::int64_t* positions = nullptr;
  const float* sinks = nullptr;   // [query_heads] or null
  const float* values = nullptr;  // [tokens, kv_heads] with kind 2, or null
  float* marks = nullptr;         // [tile_count, channels, kTileTokens]
  std::int64_t tokens = 0, query_heads = 0;

  std::int64_t group_size() const { return query_heads / kv_heads; }
  std::int64_t channels() const { return kind == 1 ? 2 : 1; }
  std::int64_t fresh(std::int64_t row) const { return starts[row + 1] - starts[row]; }
  // Queries that are scored together: as many as fill the lanes of a microkernel.
  std::int64_t queries_together(std::int64_t most_lanes) const {
    return most_lanes > group_size() ? most_lanes / group_size() : 1;
  }
};

constexpr std::int64_t kMarkLanes = 8;  // the most of every instruction set

// All new queries of one row and KV head, in order; scratch of kMarkLanes or group_size() lanes, whichever is more, of
// head_dim + table_width * kTileTokens floats.
EW_CPU_KERNEL(void, mark_tokens_kernel, const MarkTokensArgs&, std::int64_t row, std::int64_t head, float* scratch);

// The first thing wrong with the contents of a call, as "name: got X, expected Y"; empty when there is none.
std::string find_fault(const MarkTokensArgs& args);

// A whole call, divided among the host's threads by row and KV head. Throws std::bad_alloc.
void mark_tokens(const MarkTokensArgs& args, const Parallel& parallel);

}  // namespace ew
