// The kernels of attention over tiles.
#include "cpu/simd/simd.h"
// the headers below need Vec
#include "cpu/attention/attend.h"
#include "cpu/attention/attention_kernels.h"
#include "cpu/attention/write_tokens.h"

namespace ew {

EW_DEFINE_CPU_KERNEL(write_tokens_kernel, write_tokens);
EW_DEFINE_CPU_KERNEL(attend_kernel, attend);
EW_DEFINE_CPU_KERNEL(merge_kernel, merge);

}  // namespace ew
