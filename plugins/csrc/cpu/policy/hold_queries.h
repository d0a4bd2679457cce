// HoldQueries on the CPU.
#pragma once

#include <cstdint>
#include <string>

namespace ew {

// One call of HoldQueries, as raw pointers; shapes and meaning as plugins/ops declares them.
struct HoldQueriesArgs {
  const float* query;          // [tokens, heads, dim]
  float* ring;                 // [slot_count, heads, entries, dim]
  const std::int32_t* starts;  // [rows + 1]
  const std::int32_t* slots;   // [rows]
  const std::int64_t* positions;
  std::int64_t tokens, rows, heads, dim, slot_count, entries;
};

// The first thing wrong with the contents of a call, as "name: got X, expected Y"; empty when there is none.
std::string find_fault(const HoldQueriesArgs& args);

// A whole call, on this thread: it copies what a step has new.
void hold_queries(const HoldQueriesArgs& args);

}  // namespace ew
