// The largest element of a row, and the plain read with which benchmarks compare.
#pragma once

#include <cstdint>

#include "cpu/simd/variants.h"

namespace ew {

// Index and value of the largest element, the lowest index among equals; a NaN anywhere gives -1 and NaN.
EW_CPU_KERNEL(void, argmax_kernel, const float* x, std::int64_t size, std::int64_t* index, float* value);

// The sum of all elements.
EW_CPU_KERNEL(float, read_sum_kernel, const float* x, std::int64_t size);

}  // namespace ew
