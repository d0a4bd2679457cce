#include "cpu/rows/split_qkv.h"

#include "cpu/threads/rows.h"

namespace ew {

void split_qkv(const SplitQkvArgs& args, const Parallel& parallel) {
  const auto kernel = split_qkv_kernel();
  for_rows(parallel, args.tokens, args.width(),
           [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
}

}  // namespace ew
