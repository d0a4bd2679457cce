// The row that a packed token belongs to.
#pragma once

#include "kernels/device/device.cuh"

namespace ew {

// The last row that starts at or before `token`, which is below starts[rows]: the one that has it.
EW_DEVICE int row_of_token(const std::int32_t* starts, int rows, int token) {
  int low = 0, high = rows - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (starts[middle] <= token)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

}  // namespace ew
