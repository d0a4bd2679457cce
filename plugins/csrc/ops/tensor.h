// A call's tensors in the form that checks read, the same for every host, and the form of all messages.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

namespace ew::ops {

// Throws std::invalid_argument; the host's edge puts the op's name before it.
[[noreturn]] void fail(const std::string& name, const std::string& got, const std::string& expected);

// Absent optional inputs have no data and rank -1.
struct Tensor {
  static constexpr int kMaxRank = 4;
  void* data = nullptr;
  int rank = -1;
  std::int64_t shape[kMaxRank] = {};  // meaningless beyond kMaxRank axes
};

// Throw unless the tensor has this shape, in which -1 takes any size; `names` is the shape in words.
void expect_shape(const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> shape, const char* names);

}  // namespace ew::ops
