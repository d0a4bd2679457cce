// The kernels of BlockLinear with bfloat16, compiled once for each instruction set that they differ in.
#include "cpu/simd/simd.h"
// the headers below need Vec
#include "cpu/linear/bfloat16/tile.h"
#include "cpu/linear/pair_task.h"

namespace ew {
namespace {

template <template <int, int> class Tile>
void all_rows(const PairTask& pair) {
  std::int64_t done = 0;
  if constexpr (kWidth == 16) {
    some_rows<Tile<12, 2>, 12>(pair, done);
    some_rows<Tile<8, 2>, 8>(pair, done);
    some_rows<Tile<4, 2>, 4>(pair, done);
    some_rows<Tile<2, 2>, 2>(pair, done);
  } else if constexpr (kWidth == 8) {
    some_rows<Tile<6, 1>, 6>(pair, done);
    some_rows<Tile<3, 1>, 3>(pair, done);
  } else {
    some_rows<Tile<2, 1>, 2>(pair, done);
  }
  some_rows<Tile<1, 2>, 1, 2>(pair, done);
}

void bfloat16_linear_pair(const BlockLinearArgs& args, const BlockTask& task) {
  const PairTask pair(args, task);
#if defined(EW_BF16)
  if (task.rows->pairs) return all_rows<PairTile>(pair);
#endif
  all_rows<WidenedTile>(pair);
}

}  // namespace

EW_DEFINE_CPU_KERNEL(bfloat16_linear_kernel, bfloat16_linear_pair);

}  // namespace ew
