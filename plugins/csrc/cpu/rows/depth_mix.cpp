#include "cpu/rows/depth_mix.h"

#include "cpu/threads/rows.h"

namespace ew {

void depth_mix(const DepthMixArgs& args, const Parallel& parallel) {
  const auto kernel = depth_mix_kernel();
  const std::int64_t read =
      args.query_heads * args.head_dim + (args.source_count + 1) * args.kv_heads * (args.head_dim + args.value_dim);
  for_rows(parallel, args.tokens, read, [&](std::int64_t begin, std::int64_t end) { kernel(args, begin, end); });
}

}  // namespace ew
