#include "cpu/simd/isa.h"

#include <atomic>
#include <cstring>

namespace ew {
namespace {

// __builtin_cpu_supports asks CPUID and, for the wide registers, XGETBV: whether the system saves them.
bool runs_here(const Kernels& candidate) {
#ifdef EW_X86
  __builtin_cpu_init();
  if (&candidate == &kAvx512Kernels)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
  if (&candidate == &kAvx2Kernels)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return &candidate == &kPortableKernels;
}

const Kernels* const kCandidates[] = {
#ifdef EW_X86
    &kAvx512Kernels,
    &kAvx2Kernels,
#endif
    &kPortableKernels,
};

const Kernels* find(const char* name) {
  for (const Kernels* candidate : kCandidates)
    if (runs_here(*candidate) && (!name || std::strcmp(name, candidate->name) == 0)) return candidate;
  return nullptr;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{find(nullptr)};
  return kernels;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

bool set_isa(const char* name) {
  const Kernels* found = find(std::strcmp(name, "auto") == 0 ? nullptr : name);
  if (found) chosen().store(found, std::memory_order_relaxed);
  return found != nullptr;
}

}  // namespace ew
