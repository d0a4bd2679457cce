#include "cpu/attention/paged_attention.h"

#include "cpu/attention/attention_kernels.h"
#include "cpu/attention/attention_run.h"

namespace ew {

void paged_attention(const AttentionArgs& args, const Parallel& parallel) {
  if (args.tokens == 0) return;
  const auto write_tokens = write_tokens_kernel();
  // writing comes first and as a whole: rows may share tiles that one of them fills in this call
  for_new_tokens(args, parallel, [&](std::int64_t row, std::int64_t head, std::int64_t begin, std::int64_t count) {
    write_tokens(args, row, head, begin, count);
  });
  run_attention(args, attend_kernel(), merge_kernel(), parallel);
}

}  // namespace ew
