// Splits a packed projection into heads, normalised and rotated.
#include "cpu/simd/simd.h"
// the headers below need Vec
#include <cmath>

#include "cpu/rows/split_qkv.h"
#include "cpu/simd/pieces.h"

namespace ew {
namespace {

// out = x / rms(x) * scale
inline void normalise(const float* x, const float* scale, std::int64_t size, float epsilon, float* out) {
  Vec squares = splat(0.0f);
  for_pieces(size, [&](std::int64_t i, int n) {
    const Vec v = load_piece(x + i, n);  // lanes beyond n are 0
    squares = fma(v, v, squares);
  });
  const Vec factor = splat(1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + epsilon));
  for_pieces(size, [&](std::int64_t i, int n) {
    store_piece(out + i, load_piece(x + i, n) * factor * load_piece(scale + i, n), n);
  });
}

// out[i], out[i + half]: x[i] and x[i + half] turned by angle i. `out` may be x.
inline void rotate(const float* x, const float* cosines, const float* sines, std::int64_t half, float* out) {
  for_pieces(half, [&](std::int64_t i, int n) {
    const Vec a = load_piece(x + i, n), b = load_piece(x + half + i, n);
    const Vec c = load_piece(cosines + i, n), s = load_piece(sines + i, n);
    store_piece(out + i, a * c - b * s, n);
    store_piece(out + half + i, fma(b, c, a * s), n);
  });
}

inline void copy(const float* x, std::int64_t size, float* out) {
  for_pieces(size, [&](std::int64_t i, int n) { store_piece(out + i, load_piece(x + i, n), n); });
}

// `heads` heads of one token, from `x` to `out`, both dense.
inline void prepare_heads(const SplitQkvArgs& a, std::int64_t token, std::int64_t heads, const float* x,
                          const float* norm, float* out) {
  const float *cosines = a.cos + token * a.half, *sines = a.sin + token * a.half;
  for (std::int64_t h = 0; h < heads; ++h, x += a.head_dim, out += a.head_dim) {
    if (norm) normalise(x, norm, a.head_dim, a.epsilon, out);
    if (a.half) rotate(norm ? out : x, cosines, sines, a.half, out);
    if (!norm) copy(x + 2 * a.half, a.head_dim - 2 * a.half, out + 2 * a.half);
  }
}

inline void split_qkv(const SplitQkvArgs& a, std::int64_t begin, std::int64_t end) {
  const std::int64_t query = a.query_heads * a.head_dim, key = a.kv_heads * a.head_dim,
                     value = a.kv_heads * a.value_dim;
  for (std::int64_t token = begin; token < end; ++token) {
    const float* x = a.packed + token * a.width();
    prepare_heads(a, token, a.query_heads, x, a.query_norm, a.query + token * query);
    prepare_heads(a, token, a.kv_heads, x + query, a.key_norm, a.key + token * key);
    copy(x + query + key, value, a.value + token * value);
  }
}

}  // namespace

EW_DEFINE_CPU_KERNEL(split_qkv_kernel, split_qkv);

}  // namespace ew
