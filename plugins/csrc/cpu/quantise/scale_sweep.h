// The exact search for quantisation scales, PiSO (arXiv 2606.10890): row by row, every interval of scales in which no
// weight changes its code.
#pragma once

#include <cstdint>

namespace ew {

// Minimises s^2 q'Hq - 2 s target.q over scales s > 0, q being weights / s rounded to the grid, ties up.
struct ScaleSweep {
  const void* weights;      // [rows, columns], none larger than 1
  const double* targets;    // [rows, columns]
  const void* block;        // H [columns, columns], symmetric; or its diagonal [columns]
  const double* grid;       // [levels], ascending, with 0
  void* codes;              // [rows, columns], values of the grid
  double *scales, *errors;  // [rows]; the error is infinite where 0 is best everywhere
  std::int64_t rows, columns, levels;
  std::int32_t is_double;  // of weights, block and codes; else float
  std::int32_t is_diagonal;
  std::int32_t refit;  // the scale need not lie in the interval of its codes
  std::int32_t reserved;
};

void sweep_scales(const ScaleSweep& sweep);

}  // namespace ew
