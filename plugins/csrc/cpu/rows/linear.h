// Products of a few rows with the rows of a large weight.
#pragma once

#include <cstdint>

#include "cpu/simd/variants.h"

namespace ew {

// A matrix product with the rows of a weight: x[rows, size], weight[outputs, size] in floats or in codes with a scale
// for each output, bias[outputs].
struct LinearArgs {
  const float* x;
  std::int64_t rows, size;
  const float* weight;       // null: codes
  const std::int8_t* codes;  // [outputs, size]
  const float* scales;       // [outputs]
  const float* bias;
};

// out[row * stride + o - begin] for the outputs o in [begin, end); a row's result does not depend on the others.
EW_CPU_KERNEL(void, linear_kernel, const LinearArgs&, std::int64_t begin, std::int64_t end, float* out,
              std::int64_t stride);

}  // namespace ew
