#include "cpu/kvarn/kvarn_attention.h"

#include <vector>

#include "cpu/attention/attention_run.h"
#include "cpu/kvarn/kvarn_kernels.h"

namespace ew {
namespace {

// Memory of the calls of one thread of the host, kept from call to call.
struct KVarNWorkspace {
  std::vector<std::int64_t> first_spare;  // as KVarNArgs has it
  FloatBuffer spare;
  std::vector<EncodeTask> tasks;
};

Pool<KVarNWorkspace>& workspaces() {
  static Pool<KVarNWorkspace> pool;
  return pool;
}

// Call use(row, head, total) for each KV head of the rows that have new tokens; total: with those.
template <class Use>
void for_heads(const KVarNArgs& args, Use use) {
  for (std::int64_t row = 0; row < args.rows; ++row) {
    const std::int64_t count = args.starts[row + 1] - args.starts[row];
    for (std::int64_t head = 0; head < args.kv_heads && count > 0; ++head) use(row, head, args.held(row, head) + count);
  }
}

std::int64_t tiles_of(std::int64_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

// Copy tokens [begin, end), all in one tile, from one exact tile to another.
void copy_tokens(const Half* from, Half* to, std::int64_t begin, std::int64_t end, std::int64_t dim) {
  for (std::int64_t token = begin; token < end; ++token) {
    const std::int64_t slot = token % kTileTokens;
    const std::int64_t key = key_offset(slot, 0, dim), value = value_offset(slot, dim, dim);
    for (std::int64_t d = 0; d < dim; ++d) to[key + d * kBlockTokens] = from[key + d * kBlockTokens];
    std::copy(from + value, from + value + dim, to + value);
  }
}

// Finds spare tiles for the rows whose open tiles the ring cannot hold all at once, and moves what is held there.
void open_spare(KVarNArgs& args, KVarNWorkspace& work) {
  std::int64_t count = 0;
  work.first_spare.assign(static_cast<std::size_t>(args.rows * args.kv_heads), -1);
  for_heads(args, [&](std::int64_t row, std::int64_t head, std::int64_t total) {
    const std::int64_t open = tiles_of(total) - args.open_begin(row, head);
    if (open <= args.exact_tiles - 1) return;
    work.first_spare[static_cast<std::size_t>(row * args.kv_heads + head)] = count;
    count += open;
  });
  const std::int64_t halves = count * exact_tile_size(args.head_dim);
  args.first_spare = work.first_spare.data();
  args.spare = reinterpret_cast<Half*>(work.spare.reserve(static_cast<std::size_t>((halves + 1) / 2)));
}

// Call use(tile, begin, end) for the tokens [begin, end) of tiles from `tile` on, as far as `total`.
template <class Use>
void for_tiles(std::int64_t tile, std::int64_t total, Use use) {
  for (; tile * kTileTokens < total; ++tile) use(tile, tile * kTileTokens, std::min((tile + 1) * kTileTokens, total));
}

void fill_spare(const KVarNArgs& args) {
  for_heads(args, [&](std::int64_t row, std::int64_t head, std::int64_t) {
    if (args.first_spare[row * args.kv_heads + head] < 0) return;
    for_tiles(
        args.open_begin(row, head), args.held(row, head), [&](std::int64_t tile, std::int64_t begin, std::int64_t end) {
          copy_tokens(args.kept_tile(row, head, tile), args.exact_tile(row, head, tile), begin, end, args.head_dim);
        });
  });
}

void keep_spare(const KVarNArgs& args) {
  for_heads(args, [&](std::int64_t row, std::int64_t head, std::int64_t total) {
    if (args.first_spare[row * args.kv_heads + head] < 0) return;
    const std::int64_t first = std::max(args.open_begin(row, head), args.encode_end(row, head));
    for_tiles(first, total, [&](std::int64_t tile, std::int64_t begin, std::int64_t end) {
      copy_tokens(args.exact_tile(row, head, tile), args.kept_tile(row, head, tile), begin, end, args.head_dim);
    });
  });
}

void encode_tiles(const KVarNArgs& args, KVarNWorkspace& work, const Parallel& parallel) {
  const auto encode = encode_kernel();
  work.tasks.clear();
  for_heads(args, [&](std::int64_t row, std::int64_t head, std::int64_t) {
    for (std::int64_t tile = args.open_begin(row, head); tile < args.encode_end(row, head); ++tile)
      for (bool values : {false, true}) work.tasks.push_back({row, head, tile, values});
  });
  for_each_throwing(parallel, true, work.tasks.size(), [&](std::size_t i) {
    const Pool<FloatBuffer>::Loan buffer(thread_buffers());
    encode(args, work.tasks[i], buffer->reserve(static_cast<std::size_t>(encode_floats(args.head_dim))));
  });
}

}  // namespace

void kvarn_attention(KVarNArgs args, const Parallel& parallel) {
  if (args.tokens == 0) return;
  const auto write_exact_tokens = write_exact_tokens_kernel();
  const Pool<KVarNWorkspace>::Loan work(workspaces());
  open_spare(args, *work);
  fill_spare(args);
  for_new_tokens(args, parallel, [&](std::int64_t row, std::int64_t head, std::int64_t begin, std::int64_t count) {
    write_exact_tokens(args, row, head, begin, count);
  });
  run_attention(args, attend_kvarn_kernel(), merge_kvarn_kernel(), parallel);
  encode_tiles(args, *work, parallel);
  keep_spare(args);
}

}  // namespace ew
