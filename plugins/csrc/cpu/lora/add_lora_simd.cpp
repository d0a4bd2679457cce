// The kernels of AddLora, compiled once for each instruction set. Each sum has one accumulator and one order, whatever
// tokens are computed together, so that a token's result does not depend on its company.
#include <algorithm>

#include "cpu/simd/simd.h"
// the headers below need Vec
#include "cpu/lora/add_lora.h"

namespace ew {
namespace {

constexpr int kLine = 32, kAhead = 8 * kLine;  // halves

// Ask for what the same loop will want some time later: a step reads each factor once, from memory.
inline void prefetch(const Half* p) { __builtin_prefetch(p, 0, 2); }

inline Vec load_some(const float* p, int n) { return n == kWidth ? load(p) : load_part(p, n); }
inline Vec load_some(const Half* p, int n) { return n == kWidth ? load(p) : load_part(p, n); }

// R tokens with C rows of A.
template <int R, int C>
inline void inner_block(const AddLoraArgs& args, const LoraTask& task, std::int64_t at, const Half* a, std::int64_t k) {
  const float* x[R];
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    x[r] = args.x + task.tokens[at + r] * args.size;
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = splat(0.0f);
  }
  for (std::int64_t i = 0; i < args.size; i += kWidth) {
    const int n = static_cast<int>(std::min<std::int64_t>(kWidth, args.size - i));
    Vec weight[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      const Half* p = a + (k + c) * args.size + i;
      if (i % kLine == 0) prefetch(p + C * args.size);
      weight[c] = load_some(p, n);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec v = load_some(x[r] + i, n);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r][c] = fma(v, weight[c], acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) task.inner[(at + r) * args.inner() + task.segment * args.rank + k + c] = sum(acc[r][c]);
}

template <int R>
void inner_rows(const AddLoraArgs& args, const LoraTask& task, std::int64_t at, const Half* a) {
  constexpr int C = R == 4 && kWidth < 16 ? 2 : 4;
  std::int64_t k = task.begin;
  for (; k + C <= task.end; k += C) inner_block<R, C>(args, task, at, a, k);
  for (; k < task.end; ++k) inner_block<R, 1>(args, task, at, a, k);
}

void inner(const AddLoraArgs& args, const LoraTask& task) {
  const LoraSegment& segment = args.segments[static_cast<std::size_t>(task.segment)];
  const Half* a = segment.a + (task.entry * args.layers + args.layer) * args.rank * args.size;
  std::int64_t i = 0;
  for (; i + 4 <= task.count; i += 4) inner_rows<4>(args, task, i, a);
  for (; i + 2 <= task.count; i += 2) inner_rows<2>(args, task, i, a);
  for (; i < task.count; ++i) inner_rows<1>(args, task, i, a);
}

// R tokens with V vectors of the segment's outputs from o on, the last of them of n outputs.
template <int R, int V>
inline void outer_block(const AddLoraArgs& args, const LoraTask& task, std::int64_t at, const LoraSegment& segment,
                        const Half* b, std::int64_t o, int n) {
  Vec acc[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[r][v] = splat(0.0f);
  const float* numbers = task.inner + at * args.inner() + task.segment * args.rank;
  for (std::int64_t k = 0; k < args.rank; ++k) {
    Vec weight[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Half* p = b + k * segment.outputs + o + v * kWidth;
      if (v * kWidth % kLine == 0) prefetch(p + kAhead);
      weight[v] = load_some(p, v == V - 1 ? n : kWidth);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec factor = splat(numbers[r * args.inner() + k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[r][v] = fma(factor, weight[v], acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const std::int64_t token = task.tokens[at + r];
    const Vec scale = splat(args.scale[token]);
    const std::int64_t place = token * args.outputs + segment.begin + o;
    const float* base = args.base + place;
    float* to = args.sum + place;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int lanes = v == V - 1 ? n : kWidth;
      const Vec result = fma(scale, acc[r][v], load_some(base + v * kWidth, lanes));
      lanes == kWidth ? store(to + v * kWidth, result) : store_part(to + v * kWidth, result, lanes);
    }
  }
}

template <int R>
void outer_rows(const AddLoraArgs& args, const LoraTask& task, std::int64_t at, const LoraSegment& segment,
                const Half* b) {
  constexpr int V = R == 4 && kWidth < 16 ? 2 : 4;
  std::int64_t o = task.begin;
  for (; o + V * kWidth <= task.end; o += V * kWidth) outer_block<R, V>(args, task, at, segment, b, o, kWidth);
  for (; o < task.end; o += kWidth)
    outer_block<R, 1>(args, task, at, segment, b, o, static_cast<int>(std::min<std::int64_t>(kWidth, task.end - o)));
}

void outer(const AddLoraArgs& args, const LoraTask& task) {
  const LoraSegment& segment = args.segments[static_cast<std::size_t>(task.segment)];
  const Half* b = segment.b + (task.entry * args.layers + args.layer) * args.rank * segment.outputs;
  std::int64_t i = 0;
  for (; i + 4 <= task.count; i += 4) outer_rows<4>(args, task, i, segment, b);
  for (; i + 2 <= task.count; i += 2) outer_rows<2>(args, task, i, segment, b);
  for (; i < task.count; ++i) outer_rows<1>(args, task, i, segment, b);
}

}  // namespace

EW_DEFINE_CPU_KERNEL(lora_inner_kernel, inner);
EW_DEFINE_CPU_KERNEL(lora_outer_kernel, outer);

}  // namespace ew
