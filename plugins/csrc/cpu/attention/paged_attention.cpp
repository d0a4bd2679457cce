#include "cpu/attention/paged_attention.h"

#include "cpu/attention/attention_run.h"
#include "cpu/simd/isa.h"

namespace ew {

void paged_attention(const AttentionArgs& args, const Parallel& parallel) {
  if (args.tokens == 0) return;
  const Kernels& kernels = ew::kernels();
  // writing comes first and as a whole: rows may share tiles that one of them fills in this call
  for_new_tokens(args, parallel, [&](std::int64_t row, std::int64_t head, std::int64_t begin, std::int64_t count) {
    kernels.write_tokens(args, row, head, begin, count);
  });
  run_attention(args, kernels.attend, kernels.merge, parallel);
}

}  // namespace ew
