// ONNX Runtime's calls with C++ manners: statuses become exceptions inside, and statuses again at the edge.
#pragma once

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "../cpu/parallel.h"
#include "ort_abi.h"

namespace ew::ort {

// A call that the host refused; carries its status on.
struct HostError {
  Status* status;
};

inline void check(Status* status) {
  if (status) throw HostError{status};
}

// Run `body`; no exception leaves. Messages begin with the op's name.
template <class Body>
Status* guarded(const Api& api, const char* op, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const HostError& error) {
    return error.status;
  } catch (const std::invalid_argument& error) {
    return CreateStatus(api)(kInvalidArgument, (std::string(op) + ": " + error.what()).c_str());
  } catch (const std::exception& error) {
    return CreateStatus(api)(kRuntimeException, (std::string(op) + ": " + error.what()).c_str());
  }
}

[[noreturn]] inline void fail(const std::string& name, const std::string& got, const std::string& expected) {
  throw std::invalid_argument(name + ": got " + got + ", expected " + expected);
}

// A tensor of the call; absent optional inputs have no data and rank -1.
struct Tensor {
  static constexpr int kMaxRank = 4;
  void* data = nullptr;
  int rank = -1;
  std::int64_t shape[kMaxRank] = {};
};

std::size_t input_count(const Api& api, KernelContext* context);
Tensor input(const Api& api, KernelContext* context, std::size_t index);
Tensor output(const Api& api, KernelContext* context, std::size_t index, std::initializer_list<std::int64_t> shape);

// Throw unless the tensor has this shape, in which -1 takes any size; `names` is the shape in words.
void expect_shape(const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> shape, const char* names);

// An attribute of the node, or `fallback`; without a fallback its absence is an error.
std::int64_t attribute(const Api& api, const KernelInfo* info, const char* name, const std::int64_t* fallback);
float attribute(const Api& api, const KernelInfo* info, const char* name, const float* fallback);

// The host's own intra-op threads.
class HostThreads : public ew::Parallel {
 public:
  HostThreads(const Api& api, const KernelContext* context) : api_(api), context_(context) {}
  void run(void (*body)(void*, std::size_t), std::size_t count, void* data) const override {
    check(KernelContext_ParallelFor(api_)(context_, body, count, 0, data));
  }

 private:
  const Api& api_;
  const KernelContext* context_;
};

}  // namespace ew::ort
