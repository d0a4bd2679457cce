// One call of KVarNAttention, as raw pointers, and the places of its tiles in the cache.
#pragma once

#include <cstdint>

#include "cpu/attention/attention_args.h"
#include "generated/attributes/kvarn_attention.h"
#include "layout/kvarn_record.h"

namespace ew {

// Shapes and meaning as plugins/ops declares them; `tiles` holds the records, value_dim is head_dim, and the lengths
// point at the node's layer.
struct KVarNArgs : AttentionArgs {
  Half* exact;                                         // [slot_count, kv_heads, exact_tiles, exact_tile_size]
  const std::int32_t* slots;                           // [rows]
  const std::int32_t *encoded_before, *encoded_after;  // [rows, table_heads]
  std::int64_t slot_count, exact_tiles;
  declared::kvarn_attention::AttributeValues attributes;  // of them AttentionArgs has scale, softcap and window too
  // Tiles that hold what the ring has no room for while the call lasts; kvarn_attention fills these in.
  Half* spare;                      // [spare tiles, exact_tile_size]
  const std::int64_t* first_spare;  // [rows, kv_heads]: spare tile of open_begin; -1: none

  int k_bits() const { return static_cast<int>(attributes.k_bits); }
  int v_bits() const { return static_cast<int>(attributes.v_bits); }
  std::int64_t before(std::int64_t row, std::int64_t head) const { return encoded_before[entry(row, head)]; }
  std::int64_t after(std::int64_t row, std::int64_t head) const { return encoded_after[entry(row, head)]; }
  // The first tile after the sink that is not encoded when the call begins; and the end of those encoded by it.
  std::int64_t open_begin(std::int64_t row, std::int64_t head) const {
    const std::int64_t tile = before(row, head) / kTileTokens;
    return tile > 1 ? tile : 1;
  }
  std::int64_t encode_end(std::int64_t row, std::int64_t head) const { return after(row, head) / kTileTokens; }
  bool is_record(std::int64_t row, std::int64_t head, std::int64_t tile) const {
    return tile > 0 && tile < before(row, head) / kTileTokens;
  }
  unsigned char* record_data(std::int64_t row, std::int64_t head, std::int64_t tile) const {
    return tiles + tile_ids(row, head)[tile] * record_bytes(head_dim, k_bits(), v_bits());
  }
  Record record(std::int64_t row, std::int64_t head, std::int64_t tile) const {
    return Record(record_data(row, head, tile), head_dim, k_bits(), v_bits());
  }
  // The place of an exact tile after the call.
  Half* kept_tile(std::int64_t row, std::int64_t head, std::int64_t tile) const {
    const std::int64_t place = tile == 0 ? 0 : ring_place(tile, exact_tiles);
    return exact + ((slots[row] * kv_heads + head) * exact_tiles + place) * exact_tile_size(head_dim);
  }
  // The place of an exact tile during the call.
  Half* exact_tile(std::int64_t row, std::int64_t head, std::int64_t tile) const {
    const std::int64_t first = first_spare[row * kv_heads + head];
    if (tile == 0 || first < 0) return kept_tile(row, head, tile);
    return spare + (first + tile - open_begin(row, head)) * exact_tile_size(head_dim);
  }

  // The first byte of a tile, record or exact.
  unsigned char* tile_data(std::int64_t row, std::int64_t head, std::int64_t tile) const {
    return is_record(row, head, tile) ? record_data(row, head, tile)
                                      : reinterpret_cast<unsigned char*>(exact_tile(row, head, tile));
  }
};

// Floats of memory that encoding one side of a tile takes: the tile, and seven vectors over each of its sides.
constexpr std::int64_t encode_floats(std::int64_t dim) { return kTileTokens * dim + 7 * (kTileTokens + dim); }

// One side of one tile to encode.
struct EncodeTask {
  std::int64_t row, head, tile;
  bool values;
};

}  // namespace ew
