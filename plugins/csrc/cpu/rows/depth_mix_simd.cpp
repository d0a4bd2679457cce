// Mixes values over layers by an online softmax.
#include "cpu/simd/simd.h"
// the headers below need Vec
#include "cpu/rows/depth_mix.h"
#include "cpu/simd/pieces.h"
#include "cpu/simd/vector_math.h"

namespace ew {
namespace {

// factor * (sum of `group` query heads) . key; the queries lie one after another.
inline float depth_score(const float* queries, std::int64_t group, const float* key, std::int64_t dim, float factor) {
  Vec products = splat(0.0f);
  for_pieces(dim, [&](std::int64_t i, int n) {
    Vec query = load_piece(queries + i, n);  // lanes beyond n are 0
    for (std::int64_t g = 1; g < group; ++g) query = query + load_piece(queries + g * dim + i, n);
    products = fma(query, load_piece(key + i, n), products);
  });
  return sum(products) * factor;
}

// One KV head of one token: the layer's own value first, then each source's, with a running maximum and denominator.
inline void mix_head(const DepthMixArgs& a, std::int64_t token, std::int64_t head) {
  const std::int64_t group = a.query_heads / a.kv_heads, row = token * a.kv_heads + head;
  const float* queries = a.query + (token * a.query_heads + head * group) * a.head_dim;
  const float factor = a.scale / static_cast<float>(group);
  const float* value = a.value + row * a.value_dim;
  float* mixed = a.mixed + row * a.value_dim;
  float largest = depth_score(queries, group, a.key + row * a.head_dim, a.head_dim, factor), total = 1.0f;
  for_pieces(a.value_dim, [&](std::int64_t i, int n) { store_piece(mixed + i, load_piece(value + i, n), n); });
  for (std::int64_t source = 0; source < a.source_count; ++source) {
    const float* key = a.sources[2 * source] + row * a.head_dim;
    const float* other = a.sources[2 * source + 1] + row * a.value_dim;
    const float score = depth_score(queries, group, key, a.head_dim, factor), before = largest;
    largest = score > before ? score : before;
    const float kept = exp(before - largest), weight = exp(score - largest);
    total = total * kept + weight;
    for_pieces(a.value_dim, [&](std::int64_t i, int n) {
      store_piece(mixed + i, fma(load_piece(other + i, n), splat(weight), load_piece(mixed + i, n) * splat(kept)), n);
    });
  }
  for_pieces(a.value_dim,
             [&](std::int64_t i, int n) { store_piece(mixed + i, load_piece(mixed + i, n) / splat(total), n); });
}

inline void depth_mix(const DepthMixArgs& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t token = begin; token < end; ++token)
    for (std::int64_t head = 0; head < a.kv_heads; ++head) mix_head(a, token, head);
}

}  // namespace

EW_DEFINE_CPU_KERNEL(depth_mix_kernel, depth_mix);

}  // namespace ew
