// Picks numbers out of rows one by one, for instruction sets that cannot permute two vectors at once.
#pragma once

#include <cstdint>

#include "layout/tile.h"

namespace ew {
namespace {

// out[r, i] = number places[i] of row r of low, then of high, for i < count; rows are of kBlockTokens numbers.
template <class Elem>
inline void pick_rows(const Elem* low, const Elem* high, const Elem* places, int count, std::int64_t rows, Elem* out) {
  const Elem* from[kBlockTokens];
  for (int i = 0; i < count; ++i)
    from[i] = places[i] < kBlockTokens ? low + places[i] : high + places[i] - kBlockTokens;
  for (std::int64_t row = 0; row < rows * kBlockTokens; row += kBlockTokens)
    for (int i = 0; i < count; ++i) out[row + i] = from[i][row];
}

}  // namespace
}  // namespace ew
