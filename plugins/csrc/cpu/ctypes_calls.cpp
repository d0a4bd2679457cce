// C functions that Python calls through ctypes: those for tests and benchmarks, and the search for scales.
#include <cstdint>

#include "cpu/quantise/scale_sweep.h"
#include "cpu/rows/argmax.h"
#include "cpu/simd/isa.h"

#define EW_EXPORT extern "C" __attribute__((visibility("default")))

// The name of the instruction set in use: avx512, avx2 or portable.
EW_EXPORT const char* ew_cpu_isa() { return ew::isa_name(); }

// Use the named instruction set ("auto": the best) in this process; 0, or -1 when it cannot run here. For tests.
EW_EXPORT int ew_cpu_set_isa(const char* name) { return ew::set_isa(name) ? 0 : -1; }

// The sum of x[0 .. size): reads memory as fast as one thread can. For benchmarks.
EW_EXPORT float ew_read_sum(const float* x, std::int64_t size) { return ew::read_sum_kernel()(x, size); }

// The best scales of some rows; plugins/libraries/scale_sweep.py has the structure's twin.
EW_EXPORT void ew_sweep_scales(const ew::ScaleSweep* sweep) { ew::sweep_scales(*sweep); }
