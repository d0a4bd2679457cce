// ONNX Runtime's functions for C++: statuses become exceptions inside the library, and statuses again at its edge.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "cpu/threads/parallel.h"
#include "hosts/ort_cpu/ort_abi.h"
#include "ops/attributes.h"
#include "ops/tensor.h"

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

std::size_t input_count(const Api& api, KernelContext* context);
Tensor input(const Api& api, KernelContext* context, std::size_t index);
// The first kCount inputs.
template <std::size_t kCount>
std::array<Tensor, kCount> inputs(const Api& api, KernelContext* context) {
  std::array<Tensor, kCount> all;
  for (std::size_t i = 0; i < kCount; ++i) all[i] = input(api, context, i);
  return all;
}
Tensor output(const Api& api, KernelContext* context, std::size_t index, std::initializer_list<std::int64_t> shape);

// The attributes of a node.
class NodeAttributes : public AttributeReader {
 public:
  NodeAttributes(const Api& api, const KernelInfo* info) : api_(api), info_(info) {}
  std::int64_t read(const char* name, const std::int64_t* fallback) const override;
  float read(const char* name, const float* fallback) const override;

 private:
  const Api& api_;
  const KernelInfo* info_;
};

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
