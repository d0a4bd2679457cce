// Turns a refusal by the kernels' library into an exception.
#pragma once

#include <stdexcept>
#include <string>

#include "abi/cuda_calls.h"

namespace ew::ops {

// The library's message without the op's name, which the host's edge puts before it.
[[noreturn]] inline void fail_as_library() {
  const std::string message = ew_cuda_error();
  const std::size_t colon = message.find(": ");
  throw std::invalid_argument(colon == std::string::npos ? message : message.substr(colon + 2));
}

}  // namespace ew::ops
