// The heads of ClpEmit: their hidden layers and their best tokens; clp_emit.cuh describes the layout of the work.
#pragma once

#include "kernels/emission/clp_emit.cuh"

namespace ew::clp_emit {

// The place of z[row of 8, k] among the states of a head and 8 rows: as the lanes of `out` load it, 16 bytes at a time.
template <bool kCodes>
EW_DEVICE int state_place(int row, int k, int part) {
  constexpr int kRun = kCodes ? 16 : 8;  // inputs of one lane in one step
  const int step = k / (4 * kRun), lane = 4 * row + k / kRun % 4, half = k % kRun / 8;
  return (((step * (kRun / 8) + half) * 2 + part) * kWarp + lane) * 8 + k % 8;
}

// ---- up

// Elements k .. k + 8 (codes: 16) of a row of weights or states that has `size`; zeros after its end.
template <bool kWide, class Element>
EW_DEVICE Words4 load_run(const Element* row, int k, int size) {
  constexpr int kBits = 8 * sizeof(Element), kEach = 32 / kBits;
  Words4 words{};
  if constexpr (kWide) {
    if (k < size) words = load_once(reinterpret_cast<const Words4*>(row + k));
  } else {
    EW_UNROLL
    for (int e = 0; e < 4 * kEach; ++e)
      if (k + e < size)
        words.x[e / kEach] |= (static_cast<std::uint32_t>(row[k + e]) & ((1u << kBits) - 1u)) << (e % kEach * kBits);
  }
  return words;
}

// 32 inputs: word w of a run is a pair of columns of product w / 2.
template <Type type>
EW_DEVICE void multiply_run(float (&c)[4], const Words4 (&weights)[2], const Words4& states) {
  EW_UNROLL
  for (int w = 0; w < 4; w += 2) {
    const std::uint32_t a[4] = {weights[0].x[w], weights[1].x[w], weights[0].x[w + 1], weights[1].x[w + 1]};
    const std::uint32_t b[2] = {states.x[w], states.x[w + 1]};
    mma<type>(c, a, b);
  }
}

// list: the rows that want head `wanted`, in order; by the first warp. Returns how many, to all threads.
EW_DEVICE int list_rows(const Task& task, int wanted, int* count, int* list) {
  if (warp_index() == 0) {
    int found = 0;
    for (int first = 0; first < task.rows; first += kWarp) {
      const int row = first + lane_index();
      const bool wants = row < task.rows && task.lengths[row] >= wanted;
      const unsigned votes = ballot(wants);
      if (wants) list[found + count_bits(votes & ((1u << lane_index()) - 1u))] = row;
      found += count_bits(votes);
    }
    if (lane_index() == 0) *count = found;
  }
  sync_block();
  return *count;
}

// This warp's part of up[output, :] . hidden[row, :] for 16 outputs from `output` and the row of lane / 4, or -1.
template <Type type, bool kWide>
EW_DEVICE void up_product(float (&c)[4], const Task& task, int head, int output, int row) {
  const std::int64_t size = task.size;
  const int g = lane_index() / 4, run = 8 * (lane_index() % 4);
  const std::uint16_t* weights = task.up_weight + (static_cast<std::int64_t>(head) * task.inner + output + g) * size;
  const std::uint16_t* states = task.hidden + (row < 0 ? 0 : row) * size;
  const int limits[2] = {output + g < task.inner ? task.size : 0, output + g + 8 < task.inner ? task.size : 0};
  for (int first = 32 * warp_index(); first < task.size; first += 32 * kWarps * kBatch) {
    Words4 a[kBatch][2], b[kBatch];
    EW_UNROLL
    for (int s = 0; s < kBatch; ++s) {
      const int k = first + 32 * kWarps * s + run;
      a[s][0] = load_run<kWide>(weights, k, limits[0]);
      a[s][1] = load_run<kWide>(weights + 8 * size, k, limits[1]);
      b[s] = load_run<kWide>(states, k, row < 0 ? 0 : task.size);
    }
    EW_UNROLL
    for (int s = 0; s < kBatch; ++s) multiply_run<type>(c, a[s], b[s]);
  }
}

EW_DEVICE float activate(float x, bool silu) {
  return silu ? x / (1.0f + fast_exp2(-x * kLog2E)) : 0.5f * x * (1.0f + error_function(x * 0.70710678f));
}

template <Type type>
EW_DEVICE float saturated(float x) {
  return type == kHalf && x - x == 0.0f ? clamp_to_half(x) : x;
}

// z of one output and one of 8 rows, from the warps' sums; row: -1 where there is none.
template <Type type>
EW_DEVICE float hidden_layer(const Task& task, int head, int output, int row, const float* sums) {
  if (row < 0 || output >= task.inner) return 0.0f;  // zeros that `out` reads after the end of `inner`
  float x = to_float<type>(task.up_bias[head * task.inner + output]);
  for (int w = 0; w < kWarps; ++w) x += sums[w * kOutputs * kRows];
  const float z = activate(x, task.silu);
  return task.residual ? z + to_float<type>(task.hidden[static_cast<std::int64_t>(row) * task.size + output]) : z;
}

template <Type type, bool kWide, bool kCodes>
EW_KERNEL(kThreads, 2)
up_kernel(EW_CONSTANT Task task) {
  int* count_place = reinterpret_cast<int*>(shared_memory());
  int* list = count_place + 4;
  float* sums = reinterpret_cast<float*>(list + task.rows);  // [kWarps][kOutputs][kRows]
  const int head = block_y(), first_output = kOutputs * block_x(), g = lane_index() / 4, i = lane_index() % 4;
  const int count = list_rows(task, head + 1, count_place, list);
  const int row_blocks = (task.rows + kRows - 1) / kRows;
  for (int first = 0; first < count; first += kRows) {
    float c[4] = {};
    up_product<type, kWide>(c, task, head, first_output, first + g < count ? list[first + g] : -1);
    EW_UNROLL
    for (int e = 0; e < 4; ++e) sums[(warp_index() * kOutputs + g + e / 2 * 8) * kRows + 2 * i + e % 2] = c[e];
    sync_block();
    if (thread_index() < kOutputs * kRows) {
      const int row = thread_index() % kRows, output = first_output + thread_index() / kRows;
      const float z =
          hidden_layer<type>(task, head, output, first + row < count ? list[first + row] : -1, sums + thread_index());
      std::uint16_t* states =
          task.states + (static_cast<std::int64_t>(head) * row_blocks + first / kRows) * task.states_size;
      const std::uint16_t high = from_float<type>(saturated<type>(z));
      states[state_place<kCodes>(row, output, 0)] = high;
      states[state_place<kCodes>(row, output, 1)] = from_float<type>(saturated<type>(z - to_float<type>(high)));
    }
    sync_block();
  }
}

// ---- out

// Four codes of a byte each as two pairs of numbers of `type`.
template <Type type>
EW_DEVICE void decode(std::uint32_t (&pairs)[2], std::uint32_t codes) {
  if constexpr (type == kHalf) {  // 1024 + (code + 128), less 1152
    codes ^= 0x80808080u;
    pairs[0] = half2_sub(byte_permute(codes, 0x64646464u, 0x4140), 0x64806480u);
    pairs[1] = half2_sub(byte_permute(codes, 0x64646464u, 0x4342), 0x64806480u);
  } else {  // 128 + the lower 7 bits, less 128 or, of a negative code, 256
    const std::uint32_t both[2] = {byte_permute(codes, 0x43434343u, 0x4140), byte_permute(codes, 0x43434343u, 0x4342)};
    EW_UNROLL
    for (int p = 0; p < 2; ++p) pairs[p] = bfloat2_fma(both[p] & 0xff80ff80u, 0xbf80bf80u, both[p] & 0xff7fff7fu);
  }
}

// One step of 16 outputs; states: of this lane, both parts of its first 8 inputs, with codes then those of the next 8.
template <Type type, bool kCodes>
EW_DEVICE void multiply_step(float (&c)[4], const Words4 (&weights)[2], const Words4* states) {
  EW_UNROLL
  for (int half = 0; half < (kCodes ? 2 : 1); ++half) {
    Words4 numbers[2] = {weights[0], weights[1]};
    if constexpr (kCodes) {
      EW_UNROLL
      for (int w = 0; w < 4; ++w) {
        std::uint32_t pairs[2];
        decode<type>(pairs, weights[w / 2].x[2 * half + w % 2]);
        numbers[w / 2].x[2 * (w % 2)] = pairs[0];
        numbers[w / 2].x[2 * (w % 2) + 1] = pairs[1];
      }
    }
    EW_UNROLL
    for (int part = 0; part < 2; ++part) multiply_run<type>(c, numbers, states[(2 * half + part) * kWarp]);
  }
}

// The weights of 16 tokens from `token` times the states of 8 rows.
template <Type type, bool kCodes, bool kWide, class Element>
EW_DEVICE void out_product(float (&c)[4], const Element* all, const Task& task, int token, const Words4* states) {
  constexpr int kRun = 16 / sizeof(Element), kStepWords = 2 * kRun / 8 * kWarp;
  const int g = lane_index() / 4, run = kRun * (lane_index() % 4);
  const Element* weights = all + static_cast<std::int64_t>(token + g) * task.inner;
  const int limits[2] = {token + g < task.vocab ? task.inner : 0, token + g + 8 < task.vocab ? task.inner : 0};
  for (int first = 0; first < task.inner; first += 4 * kRun * kBatch) {
    Words4 a[kBatch][2];
    EW_UNROLL
    for (int s = 0; s < kBatch; ++s) {
      const int k = first + 4 * kRun * s + run;
      a[s][0] = load_run<kWide>(weights, k, limits[0]);
      a[s][1] = load_run<kWide>(weights + 8 * static_cast<std::int64_t>(task.inner), k, limits[1]);
    }
    EW_UNROLL
    for (int s = 0; s < kBatch; ++s)
      if (first + 4 * kRun * s < task.inner)
        multiply_step<type, kCodes>(c, a[s], states + (first / (4 * kRun) + s) * kStepWords + lane_index());
  }
}

// Scales and biases of the lane's two tokens among 16 from `token`, loaded before the product that they follow; the
// biases stay bits until then, for a conversion would wait for the memory.
struct Finish {
  float scales[2];
  std::uint16_t biases[2];

  EW_DEVICE void load(const Task& task, int head, int token) {
    EW_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int output = token + lane_index() / 4 + 8 * h;
      const std::int64_t at = static_cast<std::int64_t>(head) * task.vocab + output;
      scales[h] = task.out_scales != nullptr && output < task.vocab ? task.out_scales[at] : 1.0f;
      biases[h] = output < task.vocab ? task.out_bias[at] : std::uint16_t{0};
    }
  }
};

// The best token for rows 2 i and 2 i + 1 among 16 from `token`, on every lane of that i.
template <Type type>
EW_DEVICE void best_of_tile(std::uint64_t (&keys)[2], const float (&c)[4], const Finish& finish, int token, int vocab) {
  keys[0] = keys[1] = 0;
  EW_UNROLL
  for (int e = 0; e < 4; ++e) {
    const int output = token + lane_index() / 4 + e / 2 * 8;
    const float logit = c[e] * finish.scales[e / 2] + to_float<type>(finish.biases[e / 2]);
    if (output < vocab) keys[e % 2] = larger(keys[e % 2], key_of(logit, output));
  }
  EW_UNROLL
  for (int mask = 4; mask < kWarp; mask *= 2) {
    EW_UNROLL
    for (int e = 0; e < 2; ++e) keys[e] = larger(keys[e], shuffle_xor(keys[e], mask));
  }
}

// Takes 16 tokens from `token` into the warp's best of each of `count` rows.
template <Type type, bool kCodes, bool kWide>
EW_DEVICE void search_tile(std::uint64_t* best, const Task& task, int head, int count, int token) {
  const std::int64_t blocks = (task.rows + kRows - 1) / kRows;
  const std::int64_t weights = static_cast<std::int64_t>(head) * task.vocab * task.inner;
  Finish finish;
  finish.load(task, head, token);
  for (int first = 0; first < count; first += kRows) {
    const Words4* states =
        reinterpret_cast<const Words4*>(task.states + (head * blocks + first / kRows) * task.states_size);
    float c[4] = {};
    std::uint64_t keys[2];
    if constexpr (kCodes)
      out_product<type, kCodes, kWide>(c, task.out_codes + weights, task, token, states);
    else
      out_product<type, kCodes, kWide>(c, task.out_weight + weights, task, token, states);
    best_of_tile<type>(keys, c, finish, token, task.vocab);
    const int row = first + 2 * lane_index();  // of lanes 0 to 3
    EW_UNROLL
    for (int e = 0; e < 2; ++e)
      if (lane_index() < 4 && row + e < count) best[row + e] = larger(best[row + e], keys[e]);
  }
}

template <Type type, bool kCodes, bool kWide>
EW_KERNEL(kThreads, 2)
out_kernel(EW_CONSTANT Task task) {
  const int head = block_y(), count = count_rows(task.lengths, task.rows, head + 1);
  if (count == 0) return;
  std::uint64_t* all = reinterpret_cast<std::uint64_t*>(shared_memory());  // [kWarps][rows]
  std::uint64_t* best = all + warp_index() * task.rows;
  for (int row = lane_index(); row < count; row += kWarp) best[row] = 0;
  sync_warp();
  for (int tile = block_x() * kWarps + warp_index(); tile * kOutputs < task.vocab; tile += task.parts * kWarps)
    search_tile<type, kCodes, kWide>(best, task, head, count, tile * kOutputs);
  sync_block();
  for (int row = thread_index(); row < count; row += kThreads) {
    std::uint64_t key = 0;
    for (int w = 0; w < kWarps; ++w) key = larger(key, all[w * task.rows + row]);
    task.best[(static_cast<std::int64_t>(head) * task.rows + row) * task.parts + block_x()] = key;
  }
}

}  // namespace ew::clp_emit
