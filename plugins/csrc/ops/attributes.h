// The reader of a node's attributes, which every host implements, and the checks of their values.
#pragma once

#include <cstdint>
#include <string>

#include "ops/tensor.h"

namespace ew::ops {

class AttributeReader {
 public:
  virtual ~AttributeReader() = default;

  // An attribute of the node, or `fallback`; without a fallback its absence is an error, and another type always is.
  virtual std::int64_t read(const char* name, const std::int64_t* fallback) const = 0;
  virtual float read(const char* name, const float* fallback) const = 0;

  std::int64_t integer(const char* name) const { return read(name, static_cast<const std::int64_t*>(nullptr)); }
  std::int64_t integer(const char* name, std::int64_t fallback) const { return read(name, &fallback); }
  float number(const char* name) const { return read(name, static_cast<const float*>(nullptr)); }
  float number(const char* name, float fallback) const { return read(name, &fallback); }
};

// Throws unless `holds`.
template <class Value>
void expect_value(bool holds, const char* name, Value value, const std::string& expected) {
  if (!holds) fail(name, std::to_string(value), expected);
}

// `value`, which has to be in the range of the attribute's declaration, both ends included.
inline std::int64_t within(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  const char* between = most == least + 1 ? " or " : " to ";
  expect_value(value >= least && value <= most, name, value, std::to_string(least) + between + std::to_string(most));
  return value;
}

}  // namespace ew::ops
