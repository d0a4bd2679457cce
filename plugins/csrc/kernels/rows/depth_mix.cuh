// DepthMix: mixes each token's value with those of earlier layers, by a softmax of query . key over the layers.
//
// Tile picture. One (token, KV head) belongs to kLanes neighbouring lanes of a warp: 8, 16 or 32. Piece p of a lane is
// the 16 bytes (8 elements) from element 8 (lane + p kLanes) of a head; kPieces is 1, or 2 for heads of more than 256.
// The lane holds its pieces of the query (the sum of its group's heads, in float), of the mixed value (float), and of
// the keys and values of kSlots layers at a time, all loaded before the first of them is used: kSlots 2 loads of 512
// bytes for a warp, so that a few warps of a multiprocessor keep its memory busy. The layer's own key and value are
// layer 0 of the list, the sources follow it; beyond kSlots layers the softmax goes on with its largest score so far.
//
// All tensors are dense: query[tokens, kv_heads group, head_dim], layers[2 j][tokens, kv_heads, head_dim] and
// layers[2 j + 1][tokens, kv_heads, value_dim], at addresses that are multiples of 16; pointers travel in the argument.
// head_dim and value_dim: multiples of 8 up to 512. Nothing here is of one architecture: 8.0 and later.
//
// Bytes moved: 2 tokens (query_heads head_dim + kv_heads ((sources + 1) (head_dim + value_dim) + value_dim)), each
// once.
#pragma once

#include "kernels/device/device.cuh"

namespace ew::depth_mix {

constexpr int kThreads = 64;     // small blocks: a decode of few tokens still reaches many multiprocessors
constexpr int kLayers = 64 + 1;  // sources and the layer's own

struct Task {
  const std::uint16_t* query;
  const std::uint16_t* layers[2 * kLayers];  // key and value of each
  std::uint16_t* mixed;
  std::int64_t rows;  // tokens kv_heads, 1 or more
  int group, head_dim, value_dim, layer_count;
  float factor;  // scale log2(e) / group
};

template <Type type>
EW_DEVICE void unpack(float (&to)[8], const Words4& from) {
  EW_UNROLL
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = to_float<type>(static_cast<std::uint16_t>(from.x[i]));
    to[2 * i + 1] = to_float<type>(static_cast<std::uint16_t>(from.x[i] >> 16));
  }
}

// The lane's pieces of a head of `size` elements; zeros after its end.
template <int kLanes, int kPieces>
EW_DEVICE void load_pieces(Words4 (&to)[kPieces], const std::uint16_t* head, int size) {
  EW_UNROLL
  for (int p = 0; p < kPieces; ++p) {
    const int at = 8 * (thread_index() % kLanes + p * kLanes);
    to[p] = Words4{};
    if (at < size) to[p] = load_once(reinterpret_cast<const Words4*>(head + at));
  }
}

// A lane's state of its (token, KV head).
template <int kPieces>
struct State {
  float query[kPieces][8], mixed[kPieces][8];
  float largest, total;
};

// Keys and values of the layers from `first` on.
template <int kLanes, int kPieces, int kSlots>
struct Slots {
  Words4 keys[kSlots][kPieces], values[kSlots][kPieces];

  EW_DEVICE void load(const Task& task, std::int64_t row, int first) {
    EW_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      const int layer = first + s < task.layer_count ? first + s : 0;
      const bool valid = first + s < task.layer_count;
      load_pieces<kLanes>(keys[s], task.layers[2 * layer] + row * task.head_dim, valid ? task.head_dim : 0);
      load_pieces<kLanes>(values[s], task.layers[2 * layer + 1] + row * task.value_dim, valid ? task.value_dim : 0);
    }
  }
};

template <Type type, int kLanes, int kPieces>
EW_DEVICE void sum_queries(State<kPieces>& state, const Task& task, std::int64_t row) {
  constexpr int kHeads = 4;  // loaded together
  const std::uint16_t* heads = task.query + row * task.group * task.head_dim;
  for (int first = 0; first < task.group; first += kHeads) {
    Words4 words[kHeads][kPieces];
    EW_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      const int head = first + h < task.group ? first + h : 0;
      load_pieces<kLanes>(words[h], heads + head * task.head_dim, first + h < task.group ? task.head_dim : 0);
    }
    EW_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      EW_UNROLL
      for (int p = 0; p < kPieces; ++p) {
        float query[8];
        unpack<type>(query, words[h][p]);
        EW_UNROLL
        for (int i = 0; i < 8; ++i) state.query[p][i] += query[i];
      }
    }
  }
}

// query . key, the same on all of the head's lanes, in powers of two.
template <Type type, int kLanes, int kPieces>
EW_DEVICE float depth_score(const State<kPieces>& state, const Words4 (&words)[kPieces], float factor) {
  float sum = 0.0f;
  EW_UNROLL
  for (int p = 0; p < kPieces; ++p) {
    float key[8];
    unpack<type>(key, words[p]);
    EW_UNROLL
    for (int i = 0; i < 8; ++i) sum += state.query[p][i] * key[i];
  }
  return warp_sum<kLanes>(sum) * factor;
}

// Takes the slots' layers, of which `count` are there, into the running softmax.
template <Type type, int kLanes, int kPieces, int kSlots>
EW_DEVICE void absorb(State<kPieces>& state, const Slots<kLanes, kPieces, kSlots>& slots, int count, float factor) {
  float scores[kSlots], largest = state.largest;
  EW_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    scores[s] = depth_score<type, kLanes>(state, slots.keys[s], factor);
    if (s >= count) scores[s] = -INFINITY;
    largest = scores[s] > largest ? scores[s] : largest;
  }
  const float kept = fast_exp2(state.largest - largest);
  state.largest = largest;
  state.total *= kept;
  EW_UNROLL
  for (int p = 0; p < kPieces; ++p) {
    EW_UNROLL
    for (int i = 0; i < 8; ++i) state.mixed[p][i] *= kept;
  }
  EW_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    const float weight = fast_exp2(scores[s] - largest);
    state.total += weight;
    EW_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      float value[8];
      unpack<type>(value, slots.values[s][p]);
      EW_UNROLL
      for (int i = 0; i < 8; ++i) state.mixed[p][i] += weight * value[i];
    }
  }
}

template <Type type, int kLanes, int kPieces>
EW_DEVICE void store_mixed(const State<kPieces>& state, std::uint16_t* head, int size) {
  const float share = 1.0f / state.total;
  EW_UNROLL
  for (int p = 0; p < kPieces; ++p) {
    const int at = 8 * (thread_index() % kLanes + p * kLanes);
    Words4 words;
    EW_UNROLL
    for (int i = 0; i < 4; ++i)
      words.x[i] = pack_halves(from_float<type>(state.mixed[p][2 * i] * share),
                               from_float<type>(state.mixed[p][2 * i + 1] * share));
    if (at < size) *reinterpret_cast<Words4*>(head + at) = words;
  }
}

template <Type type, int kLanes, int kPieces>
EW_KERNEL(kThreads, 1)
depth_mix_kernel(EW_CONSTANT Task task) {
  constexpr int kSlots = kPieces == 1 ? 4 : 2;
  const std::int64_t thread = static_cast<std::int64_t>(block_x()) * kThreads + thread_index();
  const bool valid = thread / kLanes < task.rows;
  const std::int64_t row = valid ? thread / kLanes : task.rows - 1;  // all lanes stay for the sums
  Slots<kLanes, kPieces, kSlots> slots;
  slots.load(task, row, 0);
  State<kPieces> state{};
  state.largest = -INFINITY;
  sum_queries<type, kLanes>(state, task, row);
  for (int first = 0;;) {
    absorb<type>(state, slots, task.layer_count - first, task.factor);
    first += kSlots;
    if (first >= task.layer_count) break;
    slots.load(task, row, first);
  }
  if (valid) store_mixed<type, kLanes>(state, task.mixed + row * task.value_dim, task.value_dim);
}

}  // namespace ew::depth_mix
