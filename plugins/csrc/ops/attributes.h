// How an op reads the attributes of its node, whatever the host.
#pragma once

#include <cstdint>

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

}  // namespace ew::ops
