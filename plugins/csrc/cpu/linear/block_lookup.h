// BlockLookup on the CPU: rows of a matrix in panels as numbers.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/threads/parallel.h"
#include "generated/attributes/block_lookup.h"
#include "layout/panel.h"

namespace ew {

// One call of BlockLookup: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct BlockLookupArgs : declared::block_lookup::AttributeValues {
  const unsigned char* panels = nullptr;
  const std::int64_t* ids = nullptr;
  float* out = nullptr;
  std::int64_t tokens = 0;
};

// The first id that names no row, in words; empty when all do.
std::string find_fault(const BlockLookupArgs& args);

// A whole call, divided among the host's threads.
void block_lookup(const BlockLookupArgs& args, const Parallel& parallel);

}  // namespace ew
