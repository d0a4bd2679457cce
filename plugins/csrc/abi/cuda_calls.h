// The C functions of libenginewright_cuda: one per op, raw device pointers and a stream in, no framework.
//
// Each op has a struct that describes a call (plugins/ops describes its shapes and names), a query of the workspace
// it needs, and a launch. A launch checks what the host knows, starts kernels on `stream` (a cudaStream_t) and returns:
// it allocates nothing, waits for nothing, and so can be captured in a CUDA graph. Both return a negative number for a
// call they refuse, and ew_cuda_error says why: "Op: name: got X, expected Y".
//
// The host does not look at device memory: lengths, tables and slots must be what the scheduler makes them. The same
// functions with host pointers are in the emulated library of the tests.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EW_EXPORT __attribute__((visibility("default")))

// Raised with every change of a struct or a function below; a loader compares it.
#define EW_CUDA_ABI 2

enum { EW_HALF = 0, EW_BFLOAT16 = 1 };

// The arguments that both attention ops share. kv_lens [rows, table_heads] and table [rows, table_heads, table_width]
// point at the node's layer, of which the first kv_heads heads count; query, key, value and output are of `type`.
typedef struct EwAttention {
  const void *query, *key, *value;
  void* output;
  const int32_t *query_starts, *kv_lens, *table;
  const float* sinks;  // or null
  int64_t tokens, rows, query_heads, kv_heads, head_dim, value_dim, table_heads, table_width, window;
  int64_t longest;  // no row brings more new tokens; `tokens` where the host does not know better
  float scale, softcap;
  int32_t type;
  int32_t reserved;
} EwAttention;

typedef struct EwPagedAttention {
  EwAttention attention;
  void* tiles;
  int64_t tile_count;
  int64_t kv_bits;
} EwPagedAttention;

// encoded_before and encoded_after [rows, table_heads] point at the node's layer.
typedef struct EwKVarNAttention {
  EwAttention attention;
  void *tiles, *exact;
  const int32_t *slots, *encoded_before, *encoded_after;
  int64_t record_count, slot_count, exact_tiles, iterations;
  int32_t k_bits, v_bits, robust, rotate_values;
} EwKVarNAttention;

enum { EW_MOST_SOURCES = 64 };

// sources[2 i] and sources[2 i + 1]: key and mixed value of source i, device pointers in host memory.
typedef struct EwDepthMix {
  const void *query, *key, *value;
  const void* const* sources;
  void* mixed;
  int64_t tokens, query_heads, kv_heads, head_dim, value_dim, source_count;
  float scale;
  int32_t type;
} EwDepthMix;

// Weights of the heads' hidden layer and of out_weight are of `type`; the biases up_bias and out_bias too.
typedef struct EwClpEmit {
  const void* hidden;
  const int64_t* greedy;
  const float *classifier_weight, *classifier_bias;
  const void *up_weight, *up_bias, *out_bias;
  const void* out_weight;  // or null: out_codes and out_scales
  const int8_t* out_codes;
  const float* out_scales;
  const int64_t* sample_rows;   // or null
  const int32_t* query_starts;  // given with sample_rows: [sequences + 1]
  int64_t *tokens, *counts;
  int64_t rows, size, classes, extra, inner, vocab, sequences;
  float tau;
  int32_t activation, residual, type;
} EwClpEmit;

// out[rows, outputs] = x[rows, size] W^T of `type`. W[outputs, size] = (code - zero) * scale, codes of four bits packed
// two per byte, low nibble first, in blocks of `block` along size; scales[outputs, size / block] of `type`, zero 8.
typedef struct EwInt4Linear {
  const void *x, *codes, *scales;
  void* out;
  int64_t rows, outputs, size, block;
  int32_t type;
  int32_t reserved;
} EwInt4Linear;

typedef struct EwGreedySample {
  const float* logits;
  int64_t* tokens;
  int64_t rows, vocab;
} EwGreedySample;

// packed [tokens, (query_heads + kv_heads) head_dim + kv_heads value_dim]; cos, sin [tokens, half], null with half 0;
// norms [head_dim], both or neither.
typedef struct EwSplitQkv {
  const void *packed, *cos, *sin, *query_norm, *key_norm;
  void *query, *key, *value;
  int64_t tokens, query_heads, kv_heads, head_dim, value_dim, half;
  float epsilon;
  int32_t type;
} EwSplitQkv;

EW_EXPORT int ew_cuda_abi(void);
EW_EXPORT const char* ew_cuda_version(void);
// Why the last call of this thread was refused.
EW_EXPORT const char* ew_cuda_error(void);
// The instantiated configurations as JSON: op -> list of configurations.
EW_EXPORT const char* ew_cuda_configurations(void);
// 0, or a negative number and an error where this machine's driver or device cannot run the library.
EW_EXPORT int ew_cuda_check_device(void);
// The current device's multiprocessors, or a negative number and an error; workspaces grow with it.
EW_EXPORT int ew_cuda_multiprocessors(void);

EW_EXPORT int64_t ew_cuda_paged_attention_workspace(const EwPagedAttention* call);
EW_EXPORT int ew_cuda_paged_attention(const EwPagedAttention* call, void* workspace, int64_t bytes, void* stream);
EW_EXPORT int64_t ew_cuda_kvarn_attention_workspace(const EwKVarNAttention* call);
EW_EXPORT int ew_cuda_kvarn_attention(const EwKVarNAttention* call, void* workspace, int64_t bytes, void* stream);
EW_EXPORT int64_t ew_cuda_depth_mix_workspace(const EwDepthMix* call);
EW_EXPORT int ew_cuda_depth_mix(const EwDepthMix* call, void* workspace, int64_t bytes, void* stream);
EW_EXPORT int64_t ew_cuda_clp_emit_workspace(const EwClpEmit* call);
EW_EXPORT int ew_cuda_clp_emit(const EwClpEmit* call, void* workspace, int64_t bytes, void* stream);
EW_EXPORT int64_t ew_cuda_int4_linear_workspace(const EwInt4Linear* call);
EW_EXPORT int ew_cuda_int4_linear(const EwInt4Linear* call, void* workspace, int64_t bytes, void* stream);
EW_EXPORT int64_t ew_cuda_split_qkv_workspace(const EwSplitQkv* call);
EW_EXPORT int ew_cuda_split_qkv(const EwSplitQkv* call, void* workspace, int64_t bytes, void* stream);
EW_EXPORT int64_t ew_cuda_greedy_sample_workspace(const EwGreedySample* call);
EW_EXPORT int ew_cuda_greedy_sample(const EwGreedySample* call, void* workspace, int64_t bytes, void* stream);

// For runtimes without another access to the device. Memory comes full of zeros; null and an error where there is none.
EW_EXPORT void* ew_cuda_allocate(int64_t bytes);
EW_EXPORT void ew_cuda_free(void* memory);
EW_EXPORT void* ew_cuda_allocate_host(int64_t bytes);  // pinned
EW_EXPORT void ew_cuda_free_host(void* memory);
EW_EXPORT int64_t ew_cuda_free_bytes(void);
EW_EXPORT void* ew_cuda_create_stream(void);
EW_EXPORT void ew_cuda_destroy_stream(void* stream);
EW_EXPORT int ew_cuda_synchronize(void* stream);
// `height` pieces of `width` bytes, between any two memories; pitches are from one piece to the next.
EW_EXPORT int ew_cuda_copy(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t width,
                           int64_t height, void* stream);

#ifdef __cplusplus
}
#endif
