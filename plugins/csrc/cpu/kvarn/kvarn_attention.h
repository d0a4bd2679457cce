// KVarNAttention on the CPU: checks, and the phases of a call.
#pragma once

#include <string>

#include "cpu/kvarn/kvarn_args.h"
#include "cpu/threads/parallel.h"

namespace ew {

// The first thing wrong with the contents of a call, as "name: got X, expected Y"; empty when there is none.
// Shapes must agree already. Reads the lengths, the slots and the table entries that the call uses.
std::string find_fault(const KVarNArgs& args);

// Stores the new tokens exactly, attends, then encodes the tiles that the call commits. Results do not depend on the
// number of threads, nor on the other rows. Safe to call concurrently. Throws std::bad_alloc.
void kvarn_attention(KVarNArgs args, const Parallel& parallel);

}  // namespace ew
