// AddLora: sum = base + scale B (A x), each token with the factors of its own adapter.
//
// Two kernels, in each of which a block has one token; blocks of tokens without an adapter only copy. `inner`: a warp
// takes one row of A [rank, size] of a segment and writes A x to the workspace, [tokens, K] floats, K = segments rank.
// `outer`: a thread takes 8 neighbouring outputs, or one, and reads the columns of B [rank, outputs] that belong to
// them, and the rank numbers of their segment. Wide kernels move 16 bytes at a time: size, or the outputs of all
// segments, are multiples of 8.
//
// Bytes of a token with an adapter: 2 (K size + rank outputs) for the factors, which tokens of one adapter share in the
// second cache, 2 (size + 2 outputs) for x, base and sum. Any architecture.
#pragma once

#include "kernels/device/device.cuh"

namespace ew::add_lora {

constexpr int kThreads = 256;
constexpr int kRows = kThreads / kWarp;  // of A, in a block

constexpr int kSegments = 8;

// The factors of one segment, of the call's layer in the first adapter, and where its outputs begin.
struct Segment {
  const std::uint16_t *a, *b;
  std::int64_t begin, outputs, b_stride;  // b_stride: from one adapter to the next
};

struct Task {
  const std::uint16_t *base, *x;
  const std::int32_t* index;
  const float* scale;
  std::uint16_t* sum;
  float* inner;
  std::int64_t a_stride;  // from one adapter to the next
  std::int64_t size, outputs;
  int capacity, rank, numbers;  // numbers: K
  int segment_count;
  Segment segments[kSegments];
};

// The token's adapter; 0 without one.
EW_DEVICE int entry_of(const Task& task, std::int64_t token) {
  const int entry = task.index[token];
  return entry > 0 && entry < task.capacity ? entry : 0;
}

template <Type type>
EW_DEVICE void unpack(float (&to)[8], const Words4& from) {
  EW_UNROLL
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = to_float<type>(static_cast<std::uint16_t>(from.x[i]));
    to[2 * i + 1] = to_float<type>(static_cast<std::uint16_t>(from.x[i] >> 16));
  }
}

EW_DEVICE Words4 load_wide(const std::uint16_t* from) { return *reinterpret_cast<const Words4*>(from); }

template <Type type, bool kWide>
EW_KERNEL(kThreads, 4)
inner_kernel(EW_CONSTANT Task task) {
  const std::int64_t token = block_x();
  const int row = block_y() * kRows + warp_index(), entry = entry_of(task, token);
  if (entry == 0 || row >= task.numbers) return;
  const std::uint16_t* x = task.x + token * task.size;
  const std::uint16_t* a = task.segments[row / task.rank].a + entry * task.a_stride + row % task.rank * task.size;
  float sum = 0.0f;
  if constexpr (kWide) {
    for (std::int64_t i = 8 * lane_index(); i < task.size; i += 8 * kWarp) {
      float left[8], right[8];
      unpack<type>(left, load_wide(x + i));
      unpack<kHalf>(right, load_wide(a + i));
      EW_UNROLL
      for (int j = 0; j < 8; ++j) sum += left[j] * right[j];
    }
  } else {
    for (std::int64_t i = lane_index(); i < task.size; i += kWarp) sum += to_float<type>(x[i]) * to_float<kHalf>(a[i]);
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) task.inner[token * task.numbers + row] = sum;
}

template <Type type, bool kWide>
EW_KERNEL(kThreads, 4)
outer_kernel(EW_CONSTANT Task task) {
  constexpr int kOutputs = kWide ? 8 : 1;
  const std::int64_t token = block_x();
  const std::int64_t o = (static_cast<std::int64_t>(block_y()) * kThreads + thread_index()) * kOutputs;
  if (o >= task.outputs) return;
  const int entry = entry_of(task, token);
  int place = 0;
  while (place + 1 < task.segment_count && o >= task.segments[place + 1].begin) ++place;
  const Segment& segment = task.segments[place];
  const float* numbers = task.inner + token * task.numbers + place * task.rank;
  const std::uint16_t* b = segment.b + entry * segment.b_stride + o - segment.begin;
  const std::int64_t at = token * task.outputs + o;
  float added[kOutputs] = {};
  for (int k = 0; entry > 0 && k < task.rank; ++k) {
    if constexpr (kWide) {
      float column[8];
      unpack<kHalf>(column, load_wide(b + k * segment.outputs));
      EW_UNROLL
      for (int j = 0; j < 8; ++j) added[j] += numbers[k] * column[j];
    } else {
      added[0] += numbers[k] * to_float<kHalf>(b[k * segment.outputs]);
    }
  }
  const float scale = entry > 0 ? task.scale[token] : 0.0f;
  if constexpr (kWide) {
    const Words4 words = load_wide(task.base + at);
    if (entry == 0) {
      *reinterpret_cast<Words4*>(task.sum + at) = words;
      return;
    }
    float base[8];
    unpack<type>(base, words);
    Words4 result;
    EW_UNROLL
    for (int j = 0; j < 4; ++j)
      result.x[j] = pack_halves(from_float<type>(base[2 * j] + scale * added[2 * j]),
                                from_float<type>(base[2 * j + 1] + scale * added[2 * j + 1]));
    *reinterpret_cast<Words4*>(task.sum + at) = result;
  } else {
    task.sum[at] = entry == 0 ? task.base[at] : from_float<type>(to_float<type>(task.base[at]) + scale * added[0]);
  }
}

}  // namespace ew::add_lora
