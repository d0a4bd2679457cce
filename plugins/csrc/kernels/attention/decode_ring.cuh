// A warp's ring of stages in shared memory, into which its part of the cache is copied ahead of use.
//
// A `source` fills stages: source.copy_next(stage) starts the copies of the next slab of its tiles, or none if there is
// no slab left. While one stage is used, all others are in flight. Copies need no registers, so even few warps have
// enough of them in flight to keep the memory busy.
#pragma once

#include "kernels/device/device.cuh"

namespace ew {

template <int kStages, int kStageBytes>
class Ring {
 public:
  static_assert(kStages >= 2 && kStageBytes % 16 == 0, "one in use, the others on their way");

  template <class Source>
  EW_DEVICE Ring(unsigned char* memory, Source& source) : memory_(memory), next_(0) {
    for (int i = 0; i < kStages - 1; ++i) {
      source.copy_next(memory + i * kStageBytes);
      copy_commit();
    }
  }

  // The stage of the next slab, once it is there; its predecessor is filled again.
  template <class Source>
  EW_DEVICE const unsigned char* take(Source& source) {
    copy_wait<kStages - 2>();
    sync_warp();  // the other lanes' copies are there, too, and no lane still reads the stage before
    source.copy_next(memory_ + (next_ == 0 ? kStages - 1 : next_ - 1) * kStageBytes);
    copy_commit();
    const unsigned char* stage = memory_ + next_ * kStageBytes;
    next_ = next_ + 1 == kStages ? 0 : next_ + 1;
    return stage;
  }

 private:
  unsigned char* memory_;
  int next_;
};

}  // namespace ew
