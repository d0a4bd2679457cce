// Starts stage `decode` of attention.
#include "../kernels/decode.cuh"
#include "attention_stages.h"
#include "configurations.h"

namespace ew::cuda {
namespace {

template <int kDim>
void decode_paged(const char* op, const DecodeArguments& args, void* stream) {
  const AttentionView& view = args.view;
  launch(op, decode_paged_kernel<kDim>, Grid{args.parts.parts, view.kv_heads, view.rows}, kDecodeThreads,
         DecodeMemory<kDim>::bytes, stream, args);
}

}  // namespace

void decode(const char* op, const AttentionView& view, TileBits bits, const DecodeParts& parts, void* stream) {
  const DecodeArguments args{view, parts};
  if (bits.keys == 16) {
    switch (view.head_dim) {
#define EW_CASE(k, v)                                                            \
  case k:                                                                        \
    static_assert(k == v, "decoding has one size for queries, keys and values"); \
    return decode_paged<k>(op, args, stream);
      EW_PAGED_ATTENTION_DIMS(EW_CASE)
#undef EW_CASE
    }
  }
  refuse(op, "stage", "decode", "a kernel: not written yet");
}

}  // namespace ew::cuda
