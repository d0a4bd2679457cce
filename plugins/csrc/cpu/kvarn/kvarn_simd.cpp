// The kernels of attention over a KVarN cache.
#include "cpu/simd/simd.h"
// the headers below need Vec
#include "cpu/kvarn/kvarn_attend.h"
#include "cpu/kvarn/kvarn_encode.h"
#include "cpu/kvarn/kvarn_kernels.h"
#include "cpu/kvarn/kvarn_write_exact.h"

namespace ew {

EW_DEFINE_CPU_KERNEL(write_exact_tokens_kernel, write_exact_tokens);
EW_DEFINE_CPU_KERNEL(attend_kvarn_kernel, attend_kvarn);
EW_DEFINE_CPU_KERNEL(merge_kvarn_kernel, merge_kvarn);
EW_DEFINE_CPU_KERNEL(encode_kernel, encode);

}  // namespace ew
