// Device memory, pinned host memory, copies and streams, for a runtime that has no other access to the device.
#include <cstdlib>
#include <cstring>

#include "abi/cuda_calls.h"
#include "launchers/refuse.h"

#ifndef EW_EMULATED

namespace ew::cuda {
namespace {

constexpr double kMebibyte = 1024.0 * 1024.0;

[[noreturn]] void refuse_memory(const char* what, std::int64_t bytes, std::size_t free) {
  const auto text = [](double x) { return std::to_string(static_cast<std::int64_t>(x / kMebibyte)) + " MiB"; };
  refuse("memory", what, text(static_cast<double>(free)) + " free",
         text(static_cast<double>(bytes)) + "; use a smaller cache or batch");
}

}  // namespace
}  // namespace ew::cuda

#endif

using namespace ew::cuda;

extern "C" {

#ifdef EW_EMULATED

void* ew_cuda_allocate(int64_t bytes) { return std::calloc(static_cast<std::size_t>(bytes + 256), 1); }
void ew_cuda_free(void* memory) { std::free(memory); }
void* ew_cuda_allocate_host(int64_t bytes) { return ew_cuda_allocate(bytes); }
void ew_cuda_free_host(void* memory) { ew_cuda_free(memory); }
void* ew_cuda_create_stream(void) { return ew_cuda_allocate(1); }
void ew_cuda_destroy_stream(void* stream) { ew_cuda_free(stream); }
int ew_cuda_synchronize(void*) { return 0; }
int64_t ew_cuda_free_bytes(void) { return int64_t{1} << 30; }

int ew_cuda_copy(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t width, int64_t height,
                 void*) {
  for (int64_t row = 0; row < height; ++row)
    std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch,
                static_cast<std::size_t>(width));
  return 0;
}

#else

void* ew_cuda_allocate(int64_t bytes) {
  return guarded<void*>(nullptr, [bytes] {
    void* memory = nullptr;
    if (cudaMalloc(&memory, static_cast<std::size_t>(bytes)) != cudaSuccess) {
      cudaGetLastError();  // forget it
      std::size_t free = 0, total = 0;
      expect_success(cudaMemGetInfo(&free, &total), "memory");
      refuse_memory("device memory", bytes, free);
    }
    expect_success(cudaMemset(memory, 0, static_cast<std::size_t>(bytes)), "memory");
    expect_success(cudaStreamSynchronize(nullptr), "memory");  // our own streams do not wait for the default one
    return memory;
  });
}

void ew_cuda_free(void* memory) { cudaFree(memory); }

void* ew_cuda_allocate_host(int64_t bytes) {
  return guarded<void*>(nullptr, [bytes] {
    void* memory = nullptr;
    expect_success(cudaMallocHost(&memory, static_cast<std::size_t>(bytes)), "pinned memory");
    std::memset(memory, 0, static_cast<std::size_t>(bytes));
    return memory;
  });
}

void ew_cuda_free_host(void* memory) { cudaFreeHost(memory); }

void* ew_cuda_create_stream(void) {
  return guarded<void*>(nullptr, [] {
    cudaStream_t stream = nullptr;
    expect_success(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    return static_cast<void*>(stream);
  });
}

void ew_cuda_destroy_stream(void* stream) { cudaStreamDestroy(static_cast<cudaStream_t>(stream)); }

int ew_cuda_synchronize(void* stream) {
  return guarded(-1, [stream] {
    expect_success(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "stream");
    return 0;
  });
}

int64_t ew_cuda_free_bytes(void) {
  return guarded<int64_t>(-1, [] {
    std::size_t free = 0, total = 0;
    expect_success(cudaMemGetInfo(&free, &total), "memory");
    return static_cast<int64_t>(free);
  });
}

int ew_cuda_copy(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t width, int64_t height,
                 void* stream) {
  return guarded(-1, [&] {
    const auto size = [](int64_t x) { return static_cast<std::size_t>(x); };
    expect_success(cudaMemcpy2DAsync(to, size(to_pitch), from, size(from_pitch), size(width), size(height),
                                     cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
                   "copy");
    return 0;
  });
}

#endif

}  // extern "C"
