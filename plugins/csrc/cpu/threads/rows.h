// Divides work that treats each row by itself among the host's threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/threads/parallel.h"

namespace ew {

constexpr std::int64_t kWorthwhileElements = 1 << 17;  // about the price of waking a thread
constexpr std::int64_t kRowsOfATask = 16;

// Call body(begin, end) for runs of rows of `elements` each, on the host's threads where the work is worth it.
template <class Body>
void for_rows(const Parallel& parallel, std::int64_t rows, std::int64_t elements, Body body) {
  auto run = [&](std::size_t i) {
    const std::int64_t begin = static_cast<std::int64_t>(i) * kRowsOfATask;
    body(begin, std::min(begin + kRowsOfATask, rows));
  };
  const std::int64_t tasks = (rows + kRowsOfATask - 1) / kRowsOfATask;
  for_each(parallel, rows * elements > kWorthwhileElements, static_cast<std::size_t>(tasks), run);
}

}  // namespace ew
