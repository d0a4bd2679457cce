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

}  // namespace ew
