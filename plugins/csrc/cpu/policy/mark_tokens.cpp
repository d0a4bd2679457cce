#include "cpu/policy/mark_tokens.h"

#include <algorithm>

#include "cpu/attention/attention_run.h"
#include "cpu/threads/fault.h"

namespace ew {

std::string find_fault(const MarkTokensArgs& args) {
  std::string fault = check_starts(args.starts, args.stored.rows, args.tokens);
  for (std::int64_t row = 0; row < args.stored.rows && fault.empty(); ++row) {
    if (args.fresh(row) == 0) continue;
    for (std::int64_t head = 0; head < args.kv_heads && fault.empty(); ++head)
      fault = check_stored(args.stored, row, head, args.fresh(row));
  }
  return fault;
}

void mark_tokens(const MarkTokensArgs& args, const Parallel& parallel) {
  constexpr std::int64_t kWorthwhile = 1 << 19;  // multiply-adds: about the price of waking a thread
  std::int64_t work = 0;
  for (std::int64_t row = 0; row < args.stored.rows; ++row)
    if (args.fresh(row) > 0)
      work += args.fresh(row) * (args.stored.held(row, 0) + args.fresh(row)) * args.query_heads * args.stored.head_dim;
  const std::int64_t lanes = std::max(kMarkLanes, args.group_size());
  const std::size_t floats =
      static_cast<std::size_t>(lanes * (args.stored.head_dim + args.stored.table_width * kTileTokens));
  const auto kernel = mark_tokens_kernel();
  const std::size_t count = static_cast<std::size_t>(args.stored.rows * args.kv_heads);
  for_each_throwing(parallel, work > kWorthwhile, count, [&](std::size_t i) {
    const std::int64_t row = static_cast<std::int64_t>(i) / args.kv_heads;
    if (args.fresh(row) == 0) return;
    const Pool<FloatBuffer>::Loan buffer(thread_buffers());
    kernel(args, row, static_cast<std::int64_t>(i) % args.kv_heads, buffer->reserve(floats));
  });
}

}  // namespace ew
