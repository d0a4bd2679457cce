// GreedySample: the index of each row's largest logit, the lowest among equals; -1 where a logit is NaN or the largest
// is not finite.
//
// A block takes a row of logits [rows, vocab] float32. Its threads go over the row together, then the warps' best are
// compared in shared memory (8 bytes a warp). Bytes: the logits once. Any architecture.
#pragma once

#include "kernels/device/device.cuh"

namespace ew {

struct GreedySampleArguments {
  const float* logits;
  std::int64_t* tokens;
  std::int64_t vocab;
};

constexpr int kGreedyThreads = 512;

// The largest value so far and where; a NaN counts as the largest of all.
struct Largest {
  float value;
  int index;

  // Takes the other where it compares as larger: NaN above all, then the value, then the lower index.
  EW_DEVICE void meet(float other, int other_index) {
    const bool is_nan = value != value, other_is_nan = other != other;
    const bool wins = other_is_nan ? !is_nan || other_index < index
                                   : !is_nan && (other > value || (other == value && other_index < index));
    if (wins) {
      value = other;
      index = other_index;
    }
  }
};

EW_DEVICE void meet_lanes(Largest& found) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const float value = shuffle_xor(found.value, mask);
    const int index = shuffle_xor(found.index, mask);
    found.meet(value, index);
  }
}

EW_KERNEL(kGreedyThreads, 2) greedy_sample_kernel(EW_CONSTANT GreedySampleArguments args) {
  const float* logits = args.logits + block_x() * args.vocab;
  Largest found{bits_to_float(0xff800000u), 0x7fffffff};  // -infinity
  for (std::int64_t i = thread_index(); i < args.vocab; i += kGreedyThreads) found.meet(logits[i], static_cast<int>(i));
  meet_lanes(found);
  auto* finds = reinterpret_cast<Largest*>(shared_memory());
  if (lane_index() == 0) finds[warp_index()] = found;
  sync_block();
  if (warp_index() != 0) return;
  found = finds[lane_index() % (kGreedyThreads / kWarp)];
  meet_lanes(found);
  if (lane_index() != 0) return;
  const bool is_finite = found.value - found.value == 0.0f;
  args.tokens[block_x()] = is_finite ? found.index : -1;
}

}  // namespace ew
