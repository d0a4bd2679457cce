// TokenScores, the redundancy: how similar a token's key is to those of its row and KV head.
//
// Of unit keys u, token j's is the mean of u_i . u_j over all i other than j, without the pairs (i, with_i) that each
// key i drops, and then a softmax over all tokens. The sum over i is u_j . (sum of all u) - u_j . u_j - the dropped
// ones, so no matrix of all pairs is written. Four kernels, blocks of which take one tile of a row and KV head, the
// last one a row and KV head; thread i has token i:
//
//   unit_keys   1 / norm of each key, and the tile's sum of unit keys
//   dropped     the latest key whose cosine is above the threshold, from the row's last block of 16 keys backwards,
//   until
//               all keys of the tile have found one; the 16 keys lie in shared memory as floats [head_dim, 16]
//   means       in the output, as logits in powers of two
//   redundancy  their softmax
//
// Any architecture.
#pragma once

#include "kernels/policy/token_scores.cuh"

namespace ew::token_scores {

EW_KERNEL(kWeightThreads, 4) unit_keys_kernel(EW_CONSTANT Task task) {
  const int tile = block_x(), head = block_y(), row = block_z(), dim = task.view.head_dim;
  const int held = task.view.held(row, head), index = tile * kTileTokens + thread_index();
  if (!task.has_scores(row, head) || tile * kTileTokens >= held) return;
  const TileKeys keys = task.view.tile(row, head, tile);
  float* inverses = reinterpret_cast<float*>(shared_memory());
  float squares = 0.0f;
  for (int d = 0; index < held && d < dim; ++d) {
    const float key = keys.at(key_offset(thread_index(), d, dim));
    squares += key * key;
  }
  const float inverse = 1.0f / (square_root(squares) + 1e-8f);
  inverses[thread_index()] = inverse;
  const std::int64_t at = task.begin(row, head) + index;
  task.inverse[at] = inverse;
  task.own[at] = squares * inverse * inverse;
  sync_block();
  const int count = held - tile * kTileTokens < kTileTokens ? held - tile * kTileTokens : kTileTokens;
  float* sums = task.sums + (task.head_at(row, head) * task.view.table_width + tile) * dim;
  for (int d = thread_index(); d < dim; d += kWeightThreads) {
    float sum = 0.0f;
    for (int slot = 0; slot < count; ++slot) sum += keys.at(key_offset(slot, d, dim)) * inverses[slot];
    sums[d] = sum;
  }
}

// Unit keys of a block of 16 tokens from `first` on, as [head_dim, 16]; zeros for tokens that do not exist.
EW_DEVICE void stage_block(const Task& task, int row, int head, int first, int held, float* units) {
  const TileKeys keys = task.view.tile(row, head, first / kTileTokens);
  const float* inverse = task.inverse + task.begin(row, head) + first;
  const int slot = first % kTileTokens;
  for (int i = thread_index(); i < task.view.head_dim * kBlockTokens; i += kWeightThreads) {
    const int d = i / kBlockTokens, token = i % kBlockTokens;
    units[i] = first + token < held ? keys.at(key_offset(slot + token, d, task.view.head_dim)) * inverse[token] : 0.0f;
  }
}

// Products of a key with a block's unit keys.
EW_DEVICE void find_products(const TileKeys& keys, int slot, int dim, const float* units,
                             float (&products)[kBlockTokens]) {
  EW_UNROLL
  for (int t = 0; t < kBlockTokens; ++t) products[t] = 0.0f;
  for (int d = 0; d < dim; ++d) {
    const float key = keys.at(key_offset(slot, d, dim));
    EW_UNROLL
    for (int t = 0; t < kBlockTokens; ++t) products[t] += key * units[d * kBlockTokens + t];
  }
}

// True for all threads where `done` is true for all of them. `votes`: one a warp.
EW_DEVICE bool all_done(bool done, int* votes) {
  const unsigned vote = ballot(done);
  sync_block();
  if (lane_index() == 0) votes[warp_index()] = vote == kAllLanes ? 1 : 0;
  sync_block();
  int count = 0;
  for (int w = 0; w < kWeightThreads / kWarp; ++w) count += votes[w];
  return count == kWeightThreads / kWarp;
}

EW_KERNEL(kWeightThreads, 4) dropped_kernel(EW_CONSTANT Task task) {
  const int tile = block_x(), head = block_y(), row = block_z(), dim = task.view.head_dim;
  const int held = task.view.held(row, head), index = tile * kTileTokens + thread_index();
  if (!task.has_scores(row, head) || tile * kTileTokens >= held) return;
  const TileKeys keys = task.view.tile(row, head, tile);
  const std::int64_t at = task.begin(row, head) + index;
  float* units = reinterpret_cast<float*>(shared_memory());
  int* votes = reinterpret_cast<int*>(units + dim * kBlockTokens);
  const float inverse = task.inverse[at];
  int with = -1;
  float dropped = 0.0f;
  for (int first = (held - 1) / kBlockTokens * kBlockTokens; first >= 0; first -= kBlockTokens) {
    if (all_done(with >= 0 || index >= held, votes)) break;
    stage_block(task, row, head, first, held, units);
    sync_block();
    if (with >= 0 || index >= held) continue;
    float products[kBlockTokens];
    find_products(keys, thread_index(), dim, units, products);
    EW_UNROLL
    for (int t = kBlockTokens - 1; t >= 0; --t) {
      const float cosine = products[t] * inverse;
      if (with < 0 && first + t != index && cosine > task.threshold) {
        with = first + t;
        dropped = cosine;
      }
    }
    if (first == 0 && with < 0 && index > 0) dropped = products[0] * inverse;  // none is above: key 0 is dropped
  }
  if (index >= held) return;
  task.with[at] = with < 0 ? 0 : with;
  task.dropped[at] = dropped;
}

EW_KERNEL(kWeightThreads, 4) means_kernel(EW_CONSTANT Task task) {
  const int tile = block_x(), head = block_y(), row = block_z(), dim = task.view.head_dim;
  const int held = task.view.held(row, head), index = tile * kTileTokens + thread_index();
  if (!task.has_scores(row, head) || tile * kTileTokens >= held) return;
  float* total = reinterpret_cast<float*>(shared_memory());
  const float* sums = task.sums + task.head_at(row, head) * task.view.table_width * dim;
  for (int d = thread_index(); d < dim; d += kWeightThreads) {
    total[d] = 0.0f;
    for (int t = 0; t * kTileTokens < held; ++t) total[d] += sums[static_cast<std::int64_t>(t) * dim + d];
  }
  sync_block();
  if (index >= held) return;
  const TileKeys keys = task.view.tile(row, head, tile);
  const std::int64_t begin = task.begin(row, head);
  float product = 0.0f;
  for (int d = 0; d < dim; ++d) product += keys.at(key_offset(thread_index(), d, dim)) * total[d];
  float sum = product * task.inverse[begin + index] - task.own[begin + index];
  for (int i = 0; i < held; ++i)
    if (task.with[begin + i] == index) sum -= task.dropped[begin + i];
  task.redundancy[begin + index] = sum / static_cast<float>(held) * kLog2E;
}

EW_KERNEL(kWeightThreads, 4) redundancy_kernel(EW_CONSTANT Task task) {
  const int head = block_x(), row = block_y(), width = task.view.table_width * kTileTokens;
  float* values = task.redundancy + task.begin(row, head);
  if (!task.has_scores(row, head)) {
    for (int i = thread_index(); i < width; i += kWeightThreads) values[i] = 0.0f;
    return;
  }
  const int held = task.view.held(row, head), scored = task.scored(row, head);
  Running running;
  for (int i = thread_index(); i < held; i += kWeightThreads) running.add(values[i]);
  const Softmax softmax = join(running, kNoLogit, reinterpret_cast<float*>(shared_memory()));
  for (int i = thread_index(); i < width; i += kWeightThreads)
    values[i] = i < scored ? softmax.weight(values[i]) : 0.0f;
}

}  // namespace ew::token_scores
