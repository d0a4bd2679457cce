// PagedAttention on the CPU: checks, the split into tasks, and their execution on the host's threads.
#pragma once

#include <string>

#include "cpu/attention/attention_args.h"
#include "cpu/threads/parallel.h"

namespace ew {

// The first thing wrong with the contents of a call, as "name: got X, expected Y"; empty when there is none.
// Shapes must agree already. Reads starts, kv_lens and the table entries that the call uses.
std::string find_fault(const AttentionArgs& args);

// Write the new tokens, then attend. Results do not depend on the number of threads, nor on the other rows.
// Safe to call concurrently. Throws std::bad_alloc.
void paged_attention(const AttentionArgs& args, const Parallel& parallel);

}  // namespace ew
