// The largest workspace that an attention op needs within a profile.
#pragma once

#include <algorithm>
#include <cstdint>

#include "hosts/tensorrt/operation.h"

namespace ew::trt {

// It grows with every size but the rows: the context of few rows is split into more parts, each with its own results.
template <class Arguments>
std::int64_t attention_bound(Arguments largest) {
  const std::int64_t most_rows = largest.attention.rows;
  std::int64_t bytes = 0;
  for (std::int64_t rows = 0; rows <= most_rows; ++rows) {
    largest.attention.rows = rows;
    bytes = std::max(bytes, workspace_of(largest));
  }
  return bytes;
}

}  // namespace ew::trt
