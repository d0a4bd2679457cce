#include "attention_stages.h"

namespace ew::cuda {

void hold(const AttentionView&, const Encoding&, void*) {
  refuse("KVarNAttention", "stage", "hold", "a kernel: not written yet");
}

}  // namespace ew::cuda
