// The library's ABI, version and device check, and the last error of each thread.
#include <string>

#include "abi/cuda_calls.h"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

std::string& last_error() {
  static thread_local std::string message;
  return message;
}

}  // namespace

void set_error(const std::string& message) { last_error() = message; }

#ifdef EW_EMULATED

int multiprocessor_count() { return 4; }

#else

int multiprocessor_count() {
  static const int count = [] {
    int device = 0, found = 0;
    expect_success(cudaGetDevice(&device), "cudaGetDevice");
    expect_success(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return found;
  }();
  return count;
}

#endif

}  // namespace ew::cuda

using namespace ew::cuda;

extern "C" {

int ew_cuda_abi(void) { return EW_CUDA_ABI; }

const char* ew_cuda_version(void) { return EW_VERSION; }

const char* ew_cuda_error(void) { return last_error().c_str(); }

int ew_cuda_multiprocessors(void) {
  return guarded(-1, [] { return multiprocessor_count(); });
}

int ew_cuda_check_device(void) {
#ifdef EW_EMULATED
  return 0;
#else
  return guarded(-1, [] {
    int driver = 0, device = 0, major = 0, minor = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) refuse("device", "driver", "none", "an NVIDIA driver for CUDA 13 (580 or later)");
    if (driver < CUDART_VERSION / 1000 * 1000)
      refuse("device", "driver",
             "one for CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10),
             "one for CUDA " + std::to_string(CUDART_VERSION / 1000) + " or later; upgrade the driver");
    expect_success(cudaGetDevice(&device), "device");
    expect_success(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    expect_success(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device");
    if (major < 8)
      refuse("device", "compute capability", std::to_string(major) + "." + std::to_string(minor), "8.0 or higher");
    return 0;
  });
#endif
}

}  // extern "C"
