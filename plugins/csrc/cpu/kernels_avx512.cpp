// The kernels, compiled for AVX-512; the build gives this file its own instruction-set flags.
#include "kernels.h"
#include "simd_avx512.h"
// the headers below need Vec
#include "argmax.h"
#include "attend.h"
#include "depth_mix.h"
#include "kvarn_attend.h"
#include "kvarn_encode.h"
#include "kvarn_hold.h"
#include "linear.h"
#include "split_heads.h"
#include "write_tokens.h"

namespace ew {

const Kernels kAvx512Kernels = {"avx512", write_tokens, attend,    merge,  hold_tokens, attend_kvarn, merge_kvarn,
                                encode,   split_qkv,    depth_mix, argmax, linear,      read_sum};

}  // namespace ew
