// AddLora on the CPU: adds each token's own low-rank product to the product of a weight.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/simd/variants.h"
#include "cpu/threads/parallel.h"
#include "cpu/threads/scratch.h"
#include "generated/attributes/add_lora.h"
#include "layout/tile.h"

namespace ew {

// The factors of one of the weights that were put together, a [capacity, layers, rank, size] and b [capacity, layers,
// rank, outputs], and where its outputs begin.
struct LoraSegment {
  const Half *a, *b;
  std::int64_t begin, outputs;
};

// One call of AddLora: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct AddLoraArgs : declared::add_lora::AttributeValues {
  const float* base = nullptr;
  const float* x = nullptr;
  const std::int32_t* index = nullptr;
  const float* scale = nullptr;
  float* sum = nullptr;  // may be base
  std::int64_t tokens = 0, outputs = 0, size = 0, capacity = 0, layers = 0, rank = 0;
  std::vector<LoraSegment> segments = {};

  std::int64_t inner() const { return static_cast<std::int64_t>(segments.size()) * rank; }
};

// A part of the work: some tokens of one adapter, and a range of the ranks or of the outputs of a segment.
struct LoraTask {
  const std::int64_t* tokens;
  std::int64_t count, entry, segment, begin, end;
  float* inner;  // [count, segments * rank], of these tokens
};

// inner[i, segment * rank + k] = A[k] . x for k in [begin, end).
EW_CPU_KERNEL(void, lora_inner_kernel, const AddLoraArgs&, const LoraTask&);
// sum = base + scale * B inner for the segment's outputs in [begin, end).
EW_CPU_KERNEL(void, lora_outer_kernel, const AddLoraArgs&, const LoraTask&);

// What a call works with, kept for the next one.
struct LoraScratch {
  std::vector<std::int64_t> order;  // tokens that have an adapter, adapter by adapter
  std::vector<LoraTask> inner, outer;
  FloatBuffer numbers;
};

// A whole call, divided among the host's threads. No token's result depends on the others.
void add_lora(const AddLoraArgs& args, LoraScratch& scratch, const Parallel& parallel);

}  // namespace ew
