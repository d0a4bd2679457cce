// One call of attention over a tiled cache, as raw pointers.
#pragma once

#include <cstdint>

namespace ew {

// Shapes and meaning as plugins/ops declares them for PagedAttention; kv_lens and table already point at the node's
// layer, of whose table_heads heads the first kv_heads count.
struct AttentionArgs {
  const float* query;           // [tokens, query_heads, head_dim]
  const float* key;             // [tokens, kv_heads, head_dim]
  const float* value;           // [tokens, kv_heads, value_dim]
  unsigned char* tiles;         // [tile_count, tile_bytes]
  const std::int32_t* starts;   // [rows + 1]
  const std::int32_t* kv_lens;  // [rows, table_heads]
  const std::int32_t* table;    // [rows, table_heads, table_width]
  const float* sinks;           // [query_heads] or null
  float* output;                // [tokens, query_heads, value_dim]
  std::int64_t tokens, rows, query_heads, kv_heads, head_dim, value_dim, tile_count, table_heads, table_width;
  float scale, softcap;
  std::int64_t window;
  int kv_bits;

  std::int64_t group() const { return query_heads / kv_heads; }
  // The place of a row and KV head in kv_lens, the table and the encoded lengths.
  std::int64_t entry(std::int64_t row, std::int64_t head) const { return row * table_heads + head; }
  std::int64_t held(std::int64_t row, std::int64_t head) const { return kv_lens[entry(row, head)]; }
  const std::int32_t* tile_ids(std::int64_t row, std::int64_t head) const {
    return table + entry(row, head) * table_width;
  }
};

}  // namespace ew
