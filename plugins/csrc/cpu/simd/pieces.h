// Loops over rows of any length, one vector at a time. Include simd.h first.
#pragma once

#include <cstdint>

namespace ew {
namespace {

// Call body(i, n) for pieces [i, i + n) of [0, size), n being kWidth but for the last.
template <class Body>
inline void for_pieces(std::int64_t size, Body body) {
  for (std::int64_t i = 0; i < size; i += kWidth) body(i, static_cast<int>(size - i < kWidth ? size - i : kWidth));
}

inline Vec load_piece(const float* p, int n) { return n == kWidth ? load(p) : load_part(p, n); }
inline void store_piece(float* p, Vec x, int n) { n == kWidth ? store(p, x) : store_part(p, x, n); }

}  // namespace
}  // namespace ew
