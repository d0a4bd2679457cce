#include "cpu/simd/isa.h"

#include <atomic>
#include <cstring>

#ifdef EW_X86
#include <cpuid.h>
#endif

namespace ew {
namespace {

#ifdef EW_X86
// Bit 4 of EAX in leaf 7.1; GCC 12 has no name for it.
bool has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
#endif

// __builtin_cpu_supports asks CPUID and, for the wide registers, XGETBV: whether the system saves them.
bool runs_here(Isa candidate) {
#ifdef EW_X86
  __builtin_cpu_init();
  if (candidate == Isa::kAvx512Bf16) return runs_here(Isa::kAvx512Vnni) && __builtin_cpu_supports("avx512bf16");
  if (candidate == Isa::kAvx512Vnni) return runs_here(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni");
  if (candidate == Isa::kAvx2Vnni) return runs_here(Isa::kAvx2) && has_avx_vnni();
  if (candidate == Isa::kAvx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
  if (candidate == Isa::kAvx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return candidate == Isa::kPortable;
}

struct Candidate {
  Isa isa;
  const char* name;
};
constexpr Candidate kCandidates[] = {{Isa::kAvx512Bf16, "avx512bf16"},
                                     {Isa::kAvx512Vnni, "avx512vnni"},
                                     {Isa::kAvx512, "avx512"},
                                     {Isa::kAvx2Vnni, "avx2vnni"},
                                     {Isa::kAvx2, "avx2"},
                                     {Isa::kPortable, "portable"}};

// The best of that name, or of all where `name` is null; null if it cannot run here.
const Candidate* find(const char* name) {
  for (const Candidate& candidate : kCandidates)
    if (runs_here(candidate.isa) && (!name || std::strcmp(name, candidate.name) == 0)) return &candidate;
  return nullptr;
}

std::atomic<const Candidate*>& chosen() {
  static std::atomic<const Candidate*> candidate{find(nullptr)};
  return candidate;
}

}  // namespace

Isa isa() { return chosen().load(std::memory_order_relaxed)->isa; }

const char* isa_name() { return chosen().load(std::memory_order_relaxed)->name; }

bool set_isa(const char* name) {
  const Candidate* found = find(std::strcmp(name, "auto") == 0 ? nullptr : name);
  if (found) chosen().store(found, std::memory_order_relaxed);
  return found != nullptr;
}

}  // namespace ew
