// TokenScores, a cache of records: its keys as floats, decoded and turned back, in the workspace.
//
// A block of kTileTokens threads takes one tile of a row and KV head, a thread one of its tokens: it reads the token's
// code or half of each channel, and transforms its channels in place. Neighbouring threads have neighbouring tokens, so
// reads and writes join. Bytes: each key is read once, and written log2(head_dim) + 1 times. Any architecture.
#pragma once

#include "kernels/policy/token_scores.cuh"
#include "layout/kvarn_record.h"

namespace ew::token_scores {

// encoded[rows, table_heads]: tokens in records, with those of the first tile, which is exact.
struct Records {
  Task task;
  const std::uint16_t* exact;  // [slots, kv heads, exact_tiles, exact_tile_size]
  const std::int32_t* encoded;
  int exact_tiles, k_bits;
};

EW_DEVICE float decoded_key(const CodedSide& side, int bits, int d, int slot) {
  const int per_byte = 8 / bits, shift = slot % per_byte * bits;
  const int byte = side.codes[(static_cast<std::int64_t>(d) * kTileTokens + slot) / per_byte];
  const float code = static_cast<float>((byte >> shift) & ((1 << bits) - 1));
  return (code * half_to_float(side.a[d]) + half_to_float(side.b[d])) * half_to_float(side.c[slot]);
}

EW_KERNEL(kWeightThreads, 4) decode_keys_kernel(EW_CONSTANT Records records) {
  const Task& task = records.task;
  const KeyView& view = task.view;
  const int tile = block_x(), head = block_y(), row = block_z(), slot = thread_index(), dim = view.head_dim;
  if (!task.has_scores(row, head) || tile * kTileTokens >= view.held(row, head)) return;
  float* keys = view.decoded_tile(row, head, tile);
  if (tile > 0 && tile < records.encoded[row * view.table_heads + head] / kTileTokens) {
    auto* record = const_cast<unsigned char*>(view.tiles) + view.id(row, head, tile) * view.tile_bytes;
    const CodedSide side = key_side(record, static_cast<std::int64_t>(dim), records.k_bits);
    for (int d = 0; d < dim; ++d) keys[key_offset(slot, d, dim)] = decoded_key(side, records.k_bits, d, slot);
  } else {
    const int place = tile == 0 ? 0 : ring_place(tile, records.exact_tiles);
    const std::int64_t slots = static_cast<std::int64_t>(task.slots[row]) * view.kv_heads + head;
    const std::uint16_t* from =
        records.exact + (slots * records.exact_tiles + place) * exact_tile_size(static_cast<std::int64_t>(dim));
    for (int d = 0; d < dim; ++d) keys[key_offset(slot, d, dim)] = half_to_float(from[key_offset(slot, d, dim)]);
  }
  for (int half = 1; half < dim; half *= 2)
    for (int pair = 0; pair < dim; pair += 2 * half)
      for (int d = pair; d < pair + half; ++d) {
        float *low = keys + key_offset(slot, d, dim), *high = keys + key_offset(slot, d + half, dim);
        const float a = *low, b = *high;
        *low = a + b;
        *high = a - b;
      }
  const float scale = 1.0f / square_root(static_cast<float>(dim));
  for (int d = 0; d < dim; ++d) keys[key_offset(slot, d, dim)] *= scale;
}

}  // namespace ew::token_scores
