// The kernels of one instruction set as a table of functions, which the rest of the library calls.
#pragma once

#include <cstdint>

#include "cpu/attention/attention_args.h"
#include "cpu/kvarn/kvarn_args.h"
#include "generated/attributes/depth_mix.h"
#include "generated/attributes/split_qkv.h"
#include "layout/tile.h"

namespace ew {

// One call of SplitQkv: its attributes, and raw pointers; shapes and meaning as plugins/ops declares them.
struct SplitQkvArgs : declared::split_qkv::AttributeValues {
  const float* packed = nullptr;                           // [tokens, width()]
  const float *cos = nullptr, *sin = nullptr;              // [tokens, half]; null when half is 0
  const float *query_norm = nullptr, *key_norm = nullptr;  // [head_dim], or both null
  float *query = nullptr, *key = nullptr, *value = nullptr;
  std::int64_t tokens = 0, half = 0;

  std::int64_t width() const { return (query_heads + kv_heads) * head_dim + kv_heads * value_dim; }
};

// One call of DepthMix. Source i has its key at sources[2 i] and its mixed value after it.
struct DepthMixArgs : declared::depth_mix::AttributeValues {
  const float *query = nullptr, *key = nullptr, *value = nullptr;
  const float* const* sources = nullptr;
  float* mixed = nullptr;
  std::int64_t tokens = 0, query_heads = 0, kv_heads = 0, head_dim = 0, value_dim = 0, source_count = 0;
};

// A matrix product with the rows of a weight: x[rows, size], weight[outputs, size] in floats or in codes with a scale
// for each output, bias[outputs].
struct LinearArgs {
  const float* x;
  std::int64_t rows, size;
  const float* weight;       // null: codes
  const std::int8_t* codes;  // [outputs, size]
  const float* scales;       // [outputs]
  const float* bias;
};

// Queries of one row over the tiles [tile_begin, tile_end) of one KV head. A lane is one (query, group head) pair;
// lane = query * group + group head.
struct AttentionTask {
  std::int64_t row, head;
  std::int64_t query_begin, query_count;  // within the row's new tokens
  std::int64_t tile_begin, tile_end;
  std::int64_t join;  // the joined result this task is a part of; -1: it is the whole result
  std::int64_t part;  // where the part lies, in floats
};

// A task's result before normalisation, for `lanes` lanes: sums[lane, value_stride], then the running maximum and
// the running denominator of each lane.
struct Partial {
  float* data;
  std::int64_t lanes, value_stride;

  float* sums(std::int64_t lane) const { return data + lane * value_stride; }
  float* maxima() const { return data + lanes * value_stride; }
  float* denominators() const { return maxima() + lanes; }
  std::int64_t floats() const { return lanes * (value_stride + 2); }
};

// Memory of one thread while it runs a task.
struct TaskScratch {
  float* queries;         // lanes x head_dim, packed per lane block
  float* scores;          // kMaxLanesPerBlock x kTileTokens
  float* turned;          // lanes x head_dim: queries rotated and scaled (KVarN)
  float* folded;          // kMaxLanesPerBlock x kFoldedStride: queries with a tile's scales (KVarN)
  float* strided;         // kMaxLanesPerBlock x kTileTokens: scores in the order of the codes (KVarN)
  float* keys;            // a tile's keys as float, same layout
  float* values;          // a tile's values as float
  std::int64_t* indices;  // each lane's cache index
};

constexpr int kMaxLanesPerBlock = 8;
constexpr std::int64_t kFoldedStride = kMaxHeadDim + 16;  // not a power of two: lanes fall into different cache sets
constexpr std::int64_t kFusedLanes = 16;  // up to here halves convert in the microkernel, above that once per tile

struct Kernels {
  const char* name;
  // Write the keys and values of the row's new tokens [begin, begin + count) of one KV head into their tiles.
  void (*write_tokens)(const AttentionArgs&, std::int64_t row, std::int64_t head, std::int64_t begin,
                       std::int64_t count);
  // `following`: the task this thread most likely runs next, whose first tile is fetched ahead; or null.
  void (*attend)(const AttentionArgs&, const AttentionTask&, const AttentionTask* following, const TaskScratch&,
                 const Partial&);
  // Join `count` partials (laid out one after another from `first`) in order, and write the row's output.
  void (*merge)(const AttentionArgs&, const AttentionTask&, const Partial& first, std::int64_t count);
  // The same three for KVarNAttention; encode turns one side of an exact tile into its record.
  void (*write_exact_tokens)(const KVarNArgs&, std::int64_t row, std::int64_t head, std::int64_t begin,
                             std::int64_t count);
  void (*attend_kvarn)(const KVarNArgs&, const AttentionTask&, const AttentionTask* following, const TaskScratch&,
                       const Partial&);
  void (*merge_kvarn)(const KVarNArgs&, const AttentionTask&, const Partial& first, std::int64_t count);
  void (*encode)(const KVarNArgs&, const EncodeTask&, float* memory);  // memory: encode_floats(head_dim)
  // Tokens [begin, end) of a SplitQkv call.
  void (*split_qkv)(const SplitQkvArgs&, std::int64_t begin, std::int64_t end);
  // Tokens [begin, end) of a DepthMix call.
  void (*depth_mix)(const DepthMixArgs&, std::int64_t begin, std::int64_t end);
  // Index and value of the largest element, the lowest index among equals; a NaN anywhere gives -1 and NaN.
  void (*argmax)(const float* x, std::int64_t size, std::int64_t* index, float* value);
  // out[row * stride + o - begin] for the outputs o in [begin, end); a row's result does not depend on the others.
  void (*linear)(const LinearArgs&, std::int64_t begin, std::int64_t end, float* out, std::int64_t stride);
  float (*read_sum)(const float* x, std::int64_t size);
};

extern const Kernels kPortableKernels;
#ifdef EW_X86
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace ew
