// The kernels, compiled for AVX2; the build gives this file its own instruction-set flags.
#include "cpu/simd/kernel_table.h"
#include "cpu/simd/simd_avx2.h"
// the headers below need Vec
#include "cpu/attention/attend.h"
#include "cpu/attention/write_tokens.h"
#include "cpu/kvarn/kvarn_attend.h"
#include "cpu/kvarn/kvarn_encode.h"
#include "cpu/kvarn/kvarn_write_exact.h"
#include "cpu/rows/argmax.h"
#include "cpu/rows/depth_mix.h"
#include "cpu/rows/linear.h"
#include "cpu/rows/split_qkv.h"

namespace ew {

const Kernels kAvx2Kernels = {"avx2",       write_tokens, attend,  merge,     write_exact_tokens,
                              attend_kvarn, merge_kvarn,  encode,  split_qkv, depth_mix,
                              argmax,       linear,       read_sum};

}  // namespace ew
