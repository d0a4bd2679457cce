// The vector type Vec of the instruction set that the build compiles this file for: EW_ISA is its name. Files
// *_simd.cpp include this before any header that computes with Vec.
#pragma once

#if defined(EW_AVX512)
#include "cpu/simd/simd_avx512.h"
#elif defined(EW_AVX2)
#include "cpu/simd/simd_avx2.h"
#else
#include "cpu/simd/simd_portable.h"
#endif
