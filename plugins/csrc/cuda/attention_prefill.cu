#include "attention_stages.h"

namespace ew::cuda {

void prefill(const char* op, const AttentionView&, TileBits, void*) {
  refuse(op, "stage", "prefill", "a kernel: not written yet");
}

}  // namespace ew::cuda
