// Messages of the checks of a call's contents: "name: got X, expected Y".
#pragma once

#include <cstdint>
#include <string>

namespace ew {

inline std::string expected(const std::string& name, std::int64_t got, const std::string& what) {
  return name + ": got " + std::to_string(got) + ", expected " + what;
}

inline std::string index_of(const char* name, std::int64_t row) {
  return std::string(name) + "[" + std::to_string(row) + "]";
}

inline std::string at(const char* name, std::int64_t row, std::int64_t head) {
  return std::string(name) + "[layer, " + std::to_string(row) + ", " + std::to_string(head) + "]";
}

// The first thing wrong with query_starts [rows + 1]; empty when there is none.
inline std::string check_starts(const std::int32_t* starts, std::int64_t rows, std::int64_t tokens) {
  if (starts[0] != 0) return expected("query_starts[0]", starts[0], "0");
  for (std::int64_t row = 0; row < rows; ++row)
    if (starts[row + 1] < starts[row])
      return expected(index_of("query_starts", row + 1), starts[row + 1],
                      "at least " + std::to_string(starts[row]) + ", the entry before it");
  if (starts[rows] != tokens)
    return expected(index_of("query_starts", rows), starts[rows], "T = " + std::to_string(tokens));
  return {};
}

}  // namespace ew
