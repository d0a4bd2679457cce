// Starts kernels, on a device or on the emulation of one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels/device/device.cuh"

namespace ew::cuda {

// A call that is refused, or that the driver would not run.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Grid {
  std::int64_t x = 1, y = 1, z = 1;
  bool is_empty() const { return x == 0 || y == 0 || z == 0; }
};

// Multiprocessors of the current device, by which launches split their work.
int multiprocessor_count();

#ifdef EW_EMULATED

template <class Arguments>
void launch(const char*, void (*kernel)(const Arguments), Grid grid, int threads, std::size_t shared_bytes, void*,
            const Arguments& args) {
  emulation::run_grid(static_cast<int>(grid.x), static_cast<int>(grid.y), static_cast<int>(grid.z), threads,
                      shared_bytes, [&] { kernel(args); });
}

#else

inline void expect_success(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Refused(std::string(what) + ": CUDA says: " + cudaGetErrorString(error));
}

// Runs kernel(args) on every thread of the grid, once everything before it on the stream has ended.
template <class Arguments>
void launch(const char* what, void (*kernel)(const Arguments), Grid grid, int threads, std::size_t shared_bytes,
            void* stream, const Arguments& args) {
  if (grid.is_empty()) return;
  if (shared_bytes > 48 * 1024)
    expect_success(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
                   what);
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  void* pointers[] = {const_cast<Arguments*>(&args)};
  expect_success(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, dim3(static_cast<unsigned>(threads)),
                                  pointers, shared_bytes, static_cast<cudaStream_t>(stream)),
                 what);
}

#endif

}  // namespace ew::cuda
