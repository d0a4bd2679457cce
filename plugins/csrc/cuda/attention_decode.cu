#include "attention_stages.h"

namespace ew::cuda {

void decode(const char* op, const AttentionView&, TileBits, const DecodeParts&, void*) {
  refuse(op, "stage", "decode", "a kernel: not written yet");
}

}  // namespace ew::cuda
