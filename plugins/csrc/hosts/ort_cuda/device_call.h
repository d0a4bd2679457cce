// Calls the kernels' C functions for the adapters of the CUDA provider, with the host's stream, workspace memory and
// errors.
#pragma once

#include <cstdint>

#include "abi/cuda_calls.h"
#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"
#include "ops/refusal.h"

namespace ew::ort {

#ifdef EW_EMULATED
constexpr const char* kProvider = nullptr;  // the CPU's
#else
constexpr const char* kProvider = "CUDAExecutionProvider";
#endif

template <ElementType kType>
constexpr std::int32_t kCallType = kType == kBfloat16 ? EW_BFLOAT16 : EW_HALF;

// The same as declare, for ops of this library's provider.
template <class Kernel>
DeclaredOp declare_on_device(const Declaration& declaration) {
  DeclaredOp op = declare<Kernel>(declaration);
  op.execution_provider = [](const CustomOp*) -> const char* { return kProvider; };
  return op;
}

// Registers the op of an adapter's file, whose Kernel has one declaration.
#define EW_REGISTER_DEVICE_OP(Kernel) \
  static const ::ew::ort::Registration kRegistered(declare_on_device<Kernel>(Kernel::declaration))

// Registers the op of an adapter's file once for each type of activations, by which its Kernel is a template.
#define EW_REGISTER_TYPED_OP(Kernel)                                                                                 \
  static const ::ew::ort::Registration kForHalf(declare_on_device<Kernel<kFloat16>>(Kernel<kFloat16>::declaration)), \
      kForBfloat16(declare_on_device<Kernel<kBfloat16>>(Kernel<kBfloat16>::declaration))

// The provider's own allocator, of which workspaces come. Memory that is freed while kernels still use it is
// given only to later work of the same stream.
class DeviceMemory {
 public:
  DeviceMemory(const Api& api, const KernelInfo* info) : api_(api) {
    check(KernelInfoGetAllocator(api)(info, kDefaultMemory, &allocator_));
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { ReleaseAllocator(api_)(allocator_); }

  // Runs `body(workspace)` with `bytes` of memory.
  template <class Body>
  void with(std::int64_t bytes, Body body) const {
    if (bytes == 0) return body(nullptr);
    void* memory = nullptr;
    check(AllocatorAlloc(api_)(allocator_, static_cast<std::size_t>(bytes), &memory));
    try {
      body(memory);
    } catch (...) {
      free(memory);
      throw;
    }
    free(memory);
  }

 private:
  void free(void* memory) const {
    Status* status = AllocatorFree(api_)(allocator_, memory);
    if (status != nullptr) ReleaseStatus(api_)(status);
  }

  const Api& api_;
  Allocator* allocator_ = nullptr;
};

// The part that the kernels of all ops have in common on a device.
template <class Attributes>
struct DeviceKernel : NodeKernel<Attributes> {
  DeviceMemory memory;

  DeviceKernel(const Api& host, const KernelInfo* info) : NodeKernel<Attributes>(host, info), memory(host, info) {}
};

inline void* stream_of(const Api& api, const KernelContext* context) {
  void* stream = nullptr;
#ifdef EW_EMULATED
  (void)api;
  (void)context;
#else
  check(KernelContext_GetGPUComputeStream(api)(context, &stream));
#endif
  return stream;
}

// Runs the kernels of a call on the host's stream, with workspace from the provider.
template <class Call>
void start(const Api& api, const KernelContext* context, const DeviceMemory& memory, const Call& call) {
  const std::int64_t bytes = ew_cuda_workspace(call);
  if (bytes < 0) fail_as_library();
  void* stream = stream_of(api, context);
  memory.with(bytes, [&](void* workspace) {
    if (ew_cuda_run(call, workspace, bytes, stream) < 0) fail_as_library();
  });
}

// An output that updates an input in place: the host binds one buffer to both, since a pool is too large to copy.
inline void expect_in_place(const char* name, const Tensor& in, const Tensor& out) {
  if (out.data != in.data) fail(name, "a buffer of its own", "the one bound as input, which is updated in place");
}

}  // namespace ew::ort
