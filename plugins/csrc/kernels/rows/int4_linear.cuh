// Int4Linear: out = x W^T for the few rows of a decode, W in codes of four bits with a scale for each block of inputs.
//
// Tile picture. A block has 16 outputs and up to 8 kTiles rows; its 8 warps take steps of 128 inputs in turns, so that
// the block reads 512 bytes of each output's codes at a time. A warp copies the codes of its next kStages - 1 steps to
// shared memory in the background, 64 bytes of each of 16 outputs a step, rows kPitch bytes apart so that the 16 bytes
// of 8 rows are in different banks. load_matrices then gives lane (g = lane / 4, i = lane % 4) word i of the 16 bytes,
// or 32 inputs, of outputs g and g + 8: all four lanes of a group are inside one block of 32 inputs, and its sum, made
// by two products of 16 inputs from zero, is multiplied by the block's scale in float. (Scales of 16 inputs: two pairs
// of products, with the states of two lanes of the four masked.) The warps' sums are added in their order.
//
// A product is mma of 16 outputs x 16 inputs (A) and 16 inputs x 8 rows (B). A word of 8 codes n0 .. n7 becomes the
// pairs (n0, n4), (n1, n5), (n2, n6), (n3, n7) less 8, exact in half and bfloat16; each lane permutes its 8 inputs of x
// in the same way. x comes through the first cache, which all blocks of a multiprocessor share.
//
// codes[outputs, size / 2] are those of MatMulNBits: [outputs, size / block, block / 2], low nibble first, zero 8.
// x[rows, size], scales[outputs, size / block], out[rows, outputs] of `type`. size: a multiple of 32 and of block,
// which is 16, 32, 64 or 128; any outputs and rows: above 8 kTiles rows another block reads the codes again, from the
// second cache if it holds them. Background copies and mma of bfloat16: 8.0 and later.
//
// Bytes moved: outputs size / 2 + 2 outputs size / block + 2 rows (size + outputs); codes again for each 16 rows.
#pragma once

#include "kernels/device/device.cuh"

namespace ew::int4_linear {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kOutputs = 16, kRows = 8;  // of one product
constexpr int kStep = 128;               // inputs that a warp takes at a time
constexpr int kStages = 4, kPitch = kStep / 2 + 16, kStageBytes = kOutputs * kPitch;
constexpr int kSharedBytes = kWarps * kStages * kStageBytes;

struct Task {
  const std::uint16_t* x;
  const unsigned char* codes;
  const std::uint16_t* scales;
  std::uint16_t* out;
  int rows, outputs, size, block;
};

// Starts the copies of one step's codes, from input `first` on; zeros after the end of W.
EW_DEVICE void copy_codes(const Task& task, unsigned char* stage, int output, int first) {
  EW_UNROLL
  for (int c = 0; c < kOutputs * 4 / kWarp; ++c) {
    const int row = lane_index() / 4 + kWarp / 4 * c, piece = lane_index() % 4;
    const bool valid = output + row < task.outputs && first + 32 * piece < task.size;
    const std::int64_t at = static_cast<std::int64_t>(output + row) * task.size + first + 32 * piece;
    copy_async_16(stage + row * kPitch + 16 * piece, task.codes + (valid ? at / 2 : 0), valid);
  }
}

// Eight codes as pairs (n0, n4), (n1, n5), (n2, n6), (n3, n7) of numbers of `type`, less 8.
template <Type type>
EW_DEVICE void decode(std::uint32_t (&pairs)[4], std::uint32_t codes) {
  if constexpr (type == kHalf) {  // 1024 + n, and 1024 + 16 n of the nibbles that lie higher
    EW_UNROLL
    for (int p = 0; p < 4; p += 2, codes >>= 8) {
      pairs[p] = half2_sub((codes & 0x000f000fu) | 0x64006400u, 0x64086408u);
      pairs[p + 1] = half2_fma((codes & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, 0xd480d480u);  // / 16 - 72
    }
  } else {  // 128 + n, times 1, less 136
    EW_UNROLL
    for (int p = 0; p < 4; ++p, codes >>= 4)
      pairs[p] = bfloat2_fma((codes & 0x000f000fu) | 0x43004300u, 0x3f803f80u, 0xc308c308u);
  }
}

// The lane's inputs of a step: 8 of each 32, of its row of each tile, in the order of the codes' pairs.
template <int kTiles>
struct Inputs {
  Words4 x[4][kTiles];

  EW_DEVICE void load(const Task& task, int row, int first) {
    EW_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int k = first + 32 * q + 8 * (lane_index() % 4);
      EW_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        const int at = row + kRows * t + lane_index() / 4;
        x[q][t] = Words4{};
        if (at < task.rows && k < task.size)
          x[q][t] = *reinterpret_cast<const Words4*>(task.x + static_cast<std::int64_t>(at) * task.size + k);
      }
    }
  }

  EW_DEVICE Words4 pairs(int q, int t) const {
    const Words4& w = x[q][t];
    return {{byte_permute(w.x[0], w.x[2], 0x5410), byte_permute(w.x[0], w.x[2], 0x7632),
             byte_permute(w.x[1], w.x[3], 0x5410), byte_permute(w.x[1], w.x[3], 0x7632)}};
  }
};

// Scales of a step for outputs g and g + 8: lane i of their group has those of inputs 32 i .. 32 i + 32. They stay bits
// until they are used: a conversion would wait for the memory.
template <int kScales>
struct Scales {
  std::uint32_t bits[kScales][2];

  EW_DEVICE void load(const Task& task, int output, int first) {
    const int k = first + 32 * (lane_index() % 4);
    EW_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int row = output + lane_index() / 4 + 8 * h;
      const bool valid = row < task.outputs && k < task.size;
      const std::int64_t at = static_cast<std::int64_t>(row) * (task.size / task.block) + k / task.block;
      EW_UNROLL
      for (int s = 0; s < kScales; ++s) bits[s][h] = valid ? task.scales[at + s] : 0u;
    }
  }

  // The scale of inputs 32 q .. 32 q + 32 of the step.
  template <Type type>
  EW_DEVICE float get(int s, int h, int q) const {
    return to_float<type>(static_cast<std::uint16_t>(shuffle(bits[s][h], lane_index() / 4 * 4 + q)));
  }
};

// 32 inputs of 16 outputs and 8 rows, those of them that `mine` says are this lane's.
template <Type type>
EW_DEVICE void multiply(float (&c)[4], const std::uint32_t (&low)[4], const std::uint32_t (&high)[4], const Words4& x,
                        bool mine) {
  EW_UNROLL
  for (int p = 0; p < 4; p += 2) {
    const std::uint32_t a[4] = {low[p], high[p], low[p + 1], high[p + 1]};
    const std::uint32_t b[2] = {mine ? x.x[p] : 0u, mine ? x.x[p + 1] : 0u};
    mma<type>(c, a, b);
  }
}

// One step: sums[tile] += scale * (codes x).
template <Type type, int kTiles, int kScales>
EW_DEVICE void multiply_step(float (&sums)[kTiles][4], const unsigned char* stage, const Inputs<kTiles>& inputs,
                             const Scales<kScales>& scales) {
  const int lane = lane_index();
  std::uint32_t words[4];  // of 64 inputs
  EW_UNROLL
  for (int q = 0; q < 4; ++q) {
    std::uint32_t low[4], high[4];
    if (q % 2 == 0) load_matrices(words, stage + lane % 16 * kPitch + (q + lane / 16) * 16);
    decode<type>(low, words[q % 2 * 2]);
    decode<type>(high, words[q % 2 * 2 + 1]);
    EW_UNROLL
    for (int s = 0; s < kScales; ++s) {
      const float scale[2] = {scales.template get<type>(s, 0, q), scales.template get<type>(s, 1, q)};
      EW_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        float c[4] = {};
        multiply<type>(c, low, high, inputs.pairs(q, t), kScales == 1 || lane % 4 / 2 == s);
        EW_UNROLL
        for (int e = 0; e < 4; ++e) sums[t][e] += scale[e / 2] * c[e];
      }
    }
  }
}

// The warp's steps: every kWarps-th.
template <Type type, int kTiles, int kScales>
EW_DEVICE void multiply_warp(float (&sums)[kTiles][4], const Task& task, int output, int row) {
  unsigned char* stages = shared_memory() + warp_index() * kStages * kStageBytes;
  constexpr int kStride = kStep * kWarps;
  const int begin = kStep * warp_index();
  EW_UNROLL
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s * kStride < task.size) copy_codes(task, stages + s * kStageBytes, output, begin + s * kStride);
    copy_commit();
  }
  int stage = 0;
  Scales<kScales> next;
  next.load(task, output, begin);
  for (int first = begin; first < task.size; first += kStride) {
    Inputs<kTiles> inputs;
    inputs.load(task, row, first);
    const Scales<kScales> scales = next;
    next.load(task, output, first + kStride);
    copy_wait<kStages - 2>();
    sync_warp();  // the codes are there for all lanes, and all are done with the stage before
    const int ahead = first + (kStages - 1) * kStride;
    if (ahead < task.size) copy_codes(task, stages + (stage + kStages - 1) % kStages * kStageBytes, output, ahead);
    copy_commit();
    multiply_step<type>(sums, stages + stage * kStageBytes, inputs, scales);
    stage = (stage + 1) % kStages;
  }
}

template <Type type, int kTiles, int kScales>
EW_KERNEL(kThreads, 2)
int4_linear_kernel(EW_CONSTANT Task task) {
  const int output = kOutputs * block_x(), row = kRows * kTiles * block_y();
  const int g = lane_index() / 4, i = lane_index() % 4;
  float sums[kTiles][4] = {};
  multiply_warp<type, kTiles, kScales>(sums, task, output, row);
  sync_block();  // the stages become sums[kWarps][kTiles][kRows][kOutputs]
  float* all = reinterpret_cast<float*>(shared_memory());
  EW_UNROLL
  for (int t = 0; t < kTiles; ++t) {
    EW_UNROLL
    for (int e = 0; e < 4; ++e)
      all[((warp_index() * kTiles + t) * kRows + 2 * i + e % 2) * kOutputs + g + e / 2 * 8] = sums[t][e];
  }
  sync_block();
  const int to_row = row + thread_index() / kOutputs, to_output = output + thread_index() % kOutputs;
  if (thread_index() >= kTiles * kRows * kOutputs || to_row >= task.rows || to_output >= task.outputs) return;
  float sum = 0.0f;
  EW_UNROLL
  for (int w = 0; w < kWarps; ++w) sum += all[w * kTiles * kRows * kOutputs + thread_index()];
  task.out[static_cast<std::int64_t>(to_row) * task.outputs + to_output] = from_float<type>(sum);
}

}  // namespace ew::int4_linear
