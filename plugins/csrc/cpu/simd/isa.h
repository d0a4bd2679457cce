// The choice of the instruction set that the kernels use.
#pragma once

#include "cpu/simd/kernel_table.h"

namespace ew {

// The kernels in use: the best ones this CPU and operating system support, unless set_isa chose others.
const Kernels& kernels();

// Use the kernels of that name ("avx512", "avx2", "portable"; "auto" for the best). False if they cannot run here.
bool set_isa(const char* name);

}  // namespace ew
