// Starts stage `decode` of attention.
#include "generated/calls/kvarn_attention.h"
#include "generated/calls/paged_attention.h"
#include "kernels/attention/decode.cuh"
#include "launchers/attention_stages.h"

namespace ew::cuda {
namespace {

template <int kDim>
void decode_paged(const char* op, const DecodeArguments& args, void* stream) {
  const AttentionView& view = args.view;
  launch(op, decode_paged_kernel<kDim>, Grid{args.parts.parts, view.kv_heads, view.rows}, kDecodeThreads,
         DecodeMemory<kDim>::bytes, stream, args);
}

template <int kDim, int kKeyBits, int kValueBits>
void decode_kvarn(const char* op, const DecodeArguments& args, void* stream) {
  const AttentionView& view = args.view;
  launch(op, decode_kvarn_kernel<kDim, kKeyBits, kValueBits>, Grid{args.parts.parts, view.kv_heads, view.rows},
         kDecodeThreads, DecodeMemory<kDim>::bytes, stream, args);
}

template <int kKeyBits, int kValueBits>
bool decode_kvarn(const char* op, const DecodeArguments& args, void* stream) {
  switch (args.view.head_dim) {
#define EW_CASE(d)                                           \
  case d:                                                    \
    decode_kvarn<d, kKeyBits, kValueBits>(op, args, stream); \
    return true;
    EW_KVARN_ATTENTION_DIMS(EW_CASE)
#undef EW_CASE
  }
  return false;
}

bool decode_paged(const char* op, const DecodeArguments& args, void* stream) {
  switch (args.view.head_dim) {
#define EW_CASE(k, v)                                                            \
  case k:                                                                        \
    static_assert(k == v, "decoding has one size for queries, keys and values"); \
    decode_paged<k>(op, args, stream);                                           \
    return true;
    EW_PAGED_ATTENTION_DIMS(EW_CASE)
#undef EW_CASE
  }
  return false;
}

}  // namespace

void decode(const char* op, const AttentionView& view, TileBits bits, const DecodeParts& parts, void* stream) {
  const DecodeArguments args{view, parts};
  if (bits.keys == 16 && decode_paged(op, args, stream)) return;
#define EW_TRY(k, v) \
  if (bits.keys == k && bits.values == v && decode_kvarn<k, v>(op, args, stream)) return;
  EW_KVARN_ATTENTION_BITS(EW_TRY)
#undef EW_TRY
  expect(false, op, "head_dim", view.head_dim, "one that stage `decode` is compiled for");
}

}  // namespace ew::cuda
