// The kernels of TokenScores, compiled once for each instruction set.
#include "cpu/simd/simd.h"
// the headers below need Vec
#include "cpu/policy/decoded_keys.h"
#include "cpu/policy/importance.h"
#include "cpu/policy/redundancy.h"

namespace ew {
namespace {

void unit_keys(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, const Similarity& s) {
  a.kv_bits == 32 ? find_unit_keys<float>(a, row, head, s) : find_unit_keys<Half>(a, row, head, s);
}

void dropped_cosines(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, std::int64_t begin,
                     std::int64_t end, const Similarity& s, float* scratch) {
  a.kv_bits == 32 ? find_dropped_as<float>(a, row, head, begin, end, s, scratch)
                  : find_dropped_as<Half>(a, row, head, begin, end, s, scratch);
}

void redundancies(const TokenScoresArgs& a, std::int64_t row, std::int64_t head, const Similarity& s) {
  a.kv_bits == 32 ? find_redundancy_as<float>(a, row, head, s) : find_redundancy_as<Half>(a, row, head, s);
}

}  // namespace

EW_DEFINE_CPU_KERNEL(importance_kernel, find_importance);
EW_DEFINE_CPU_KERNEL(decode_keys_kernel, find_keys);
EW_DEFINE_CPU_KERNEL(unit_keys_kernel, unit_keys);
EW_DEFINE_CPU_KERNEL(dropped_cosines_kernel, dropped_cosines);
EW_DEFINE_CPU_KERNEL(redundancy_kernel, redundancies);

}  // namespace ew
