// The kernels of attention over a KVarN cache, for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/attention/attention_kernels.h"
#include "cpu/kvarn/kvarn_args.h"

namespace ew {

// The same three as those of attention_kernels.h.
EW_CPU_KERNEL(void, write_exact_tokens_kernel, const KVarNArgs&, std::int64_t row, std::int64_t head,
              std::int64_t begin, std::int64_t count);
EW_CPU_KERNEL(void, attend_kvarn_kernel, const KVarNArgs&, const AttentionTask&, const AttentionTask* following,
              const TaskScratch&, const Partial&);
EW_CPU_KERNEL(void, merge_kvarn_kernel, const KVarNArgs&, const AttentionTask&, const Partial& first,
              std::int64_t count);

// Turn one side of an exact tile into its record. memory: encode_floats(head_dim).
EW_CPU_KERNEL(void, encode_kernel, const KVarNArgs&, const EncodeTask&, float* memory);

}  // namespace ew
