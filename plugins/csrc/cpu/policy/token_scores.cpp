#include "cpu/policy/token_scores.h"

#include <algorithm>
#include <vector>

#include "cpu/attention/attention_run.h"
#include "cpu/threads/fault.h"

namespace ew {
namespace {

constexpr std::int64_t kWorthwhile = 1 << 19;  // multiply-adds: about the price of waking a thread
constexpr std::int64_t kKeysOfATask = 2 * kTileTokens;

// The first thing wrong with the lengths of a head of a cache of records, or with the ids of its records.
std::string check_records(const TokenScoresArgs& args, std::int64_t row, std::int64_t head) {
  const std::string fault = check_length(args.stored, row, head, 0);
  if (!fault.empty()) return fault;
  const std::int64_t held = args.stored.held(row, head), encoded = args.encoded_of(row, head);
  const std::string name = "encoded_lens[0, layer, " + std::to_string(row) + ", " + std::to_string(head) + "]";
  if (encoded < 0 || encoded % kTileTokens != 0)
    return expected(name, encoded, "a multiple of " + std::to_string(kTileTokens) + ", 0 or more");
  if (encoded > held) return expected(name, encoded, "at most the " + std::to_string(held) + " tokens held");
  const std::int64_t least = held - (args.exact_tiles - 1) * kTileTokens;
  if (std::max<std::int64_t>(encoded, kTileTokens) < least)
    return expected(name, encoded,
                    std::to_string(least) + " or more, because F = " + std::to_string(args.exact_tiles) +
                        " has room for " + std::to_string(held - least) + " newest tokens");
  return check_ids(args.stored, row, head, 1, encoded / kTileTokens);
}

std::string check_row(const TokenScoresArgs& args, std::int64_t row) {
  bool is_read = false;
  for (std::int64_t head = 0; head < args.kv_heads; ++head) {
    const std::string fault =
        args.has_records() ? check_records(args, row, head) : check_stored(args.stored, row, head, 0);
    if (!fault.empty()) return fault;
    is_read = is_read || args.has_scores(row, head);
  }
  if (!is_read) return {};
  if (args.slots[row] < 0 || args.slots[row] >= args.slot_count)
    return expected(index_of("slots", row), args.slots[row], "a slot in [0, " + std::to_string(args.slot_count) + ")");
  if (args.last_positions[row] < args.window - 1)
    return expected(index_of("last_positions", row), args.last_positions[row],
                    std::to_string(args.window - 1) + " or more, because the window has " +
                        std::to_string(args.window) + " tokens");
  return {};
}

// A row and KV head that has scores, and where its part of the redundancy's memory begins.
struct ScoredHead {
  std::int64_t row, head;
  Similarity similarity;
};

class Call {
 public:
  Call(const TokenScoresArgs& args, const Parallel& parallel) : args_(args), parallel_(parallel) {}

  void run() {
    const std::int64_t rows = args_.stored.rows, floats = rows * args_.kv_heads * args_.padded();
    std::fill(args_.importance, args_.importance + floats, 0.0f);
    if (args_.similar) std::fill(args_.similar, args_.similar + floats, 0.0f);
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t head = 0; head < args_.kv_heads; ++head)
        if (args_.has_scores(row, head)) heads_.push_back({row, head, {}});
    find_importance();
    if (args_.similar) find_redundancy();
  }

 private:
  std::int64_t tokens() const {
    std::int64_t sum = 0;
    for (const ScoredHead& head : heads_) sum += args_.stored.held(head.row, head.head);
    return sum;
  }

  void find_importance() {
    const auto kernel = importance_kernel();
    const std::size_t floats = static_cast<std::size_t>(importance_floats(args_));
    const std::int64_t work = tokens() * args_.window * args_.group_size() * args_.stored.head_dim;
    for_each_throwing(parallel_, work > kWorthwhile, heads_.size(), [&](std::size_t i) {
      const Pool<FloatBuffer>::Loan buffer(thread_buffers());
      kernel(args_, heads_[i].row, heads_[i].head, buffer->reserve(floats));
    });
  }

  void find_redundancy() {
    const Pool<FloatBuffer>::Loan memory(thread_buffers());
    place_similarities(*memory);
    const auto units = unit_keys_kernel(), result = redundancy_kernel();
    const std::int64_t work = tokens() * args_.stored.head_dim;
    auto unit_keys = [&](std::size_t i) { units(args_, heads_[i].row, heads_[i].head, heads_[i].similarity); };
    for_each(parallel_, work > kWorthwhile, heads_.size(), unit_keys);
    find_dropped();
    auto redundancy = [&](std::size_t i) { result(args_, heads_[i].row, heads_[i].head, heads_[i].similarity); };
    for_each(parallel_, work > kWorthwhile, heads_.size(), redundancy);
  }

  void place_similarities(FloatBuffer& memory) {
    const std::int64_t padded = args_.padded(), sum = (args_.stored.head_dim + 15) / 16 * 16;
    const std::int64_t each = 4 * padded + sum;
    float* at = memory.reserve(heads_.size() * static_cast<std::size_t>(each));
    for (ScoredHead& head : heads_) {
      head.similarity = {at, at + padded, at + 2 * padded, reinterpret_cast<std::int32_t*>(at + 3 * padded),
                         at + 4 * padded};
      at += each;
    }
  }

  void find_dropped() {
    struct Task {
      const ScoredHead* head;
      std::int64_t begin, end;
    };
    std::vector<Task> tasks;
    std::int64_t work = 0;
    for (const ScoredHead& head : heads_) {
      const std::int64_t held = args_.stored.held(head.row, head.head);
      work += held * held * args_.stored.head_dim;
      for (std::int64_t begin = 0; begin < held; begin += kKeysOfATask)
        tasks.push_back({&head, begin, std::min(begin + kKeysOfATask, held)});
    }
    const auto kernel = dropped_cosines_kernel();
    const std::size_t floats = static_cast<std::size_t>(kScoreLanes * (args_.stored.head_dim + kTileTokens));
    for_each_throwing(parallel_, work > kWorthwhile, tasks.size(), [&](std::size_t i) {
      const Pool<FloatBuffer>::Loan buffer(thread_buffers());
      const Task& task = tasks[i];
      kernel(args_, task.head->row, task.head->head, task.begin, task.end, task.head->similarity,
             buffer->reserve(floats));
    });
  }

  const TokenScoresArgs& args_;
  const Parallel& parallel_;
  std::vector<ScoredHead> heads_;
};

// A cache of records as one of float32 tiles: the keys of all heads that have scores, decoded.
class DecodedKeys {
 public:
  DecodedKeys(const TokenScoresArgs& args, const Parallel& parallel) : args_(args), memory_(thread_buffers()) {
    struct Task {
      std::int64_t row, head, tile;
    };
    std::vector<Task> tasks;
    table_.resize(static_cast<std::size_t>(args.stored.rows * args.stored.table_heads * args.stored.table_width));
    for (std::int64_t row = 0; row < args.stored.rows; ++row)
      for (std::int64_t head = 0; head < args.kv_heads; ++head)
        for (std::int64_t tile = 0; args.has_scores(row, head) && tile < tiles_of(args.stored.held(row, head));
             ++tile) {
          const std::int64_t entry = (row * args.stored.table_heads + head) * args.stored.table_width + tile;
          table_[static_cast<std::size_t>(entry)] = static_cast<std::int32_t>(tasks.size());
          tasks.push_back({row, head, tile});
        }
    const std::int64_t floats = kTileTokens * args.stored.head_dim;
    float* first = memory_->reserve(tasks.size() * static_cast<std::size_t>(floats));
    const auto kernel = decode_keys_kernel();
    auto decode = [&](std::size_t i) {
      kernel(args, tasks[i].row, tasks[i].head, tasks[i].tile, first + static_cast<std::int64_t>(i) * floats);
    };
    for_each(parallel, tasks.size() > 1, tasks.size(), decode);
    args_.stored.tiles = reinterpret_cast<const unsigned char*>(first);
    args_.stored.table = table_.data();
    args_.stored.tile_count = static_cast<std::int64_t>(tasks.size());
    args_.stored.tile_bytes = floats * static_cast<std::int64_t>(sizeof(float));
    args_.kv_bits = 32;
  }

  const TokenScoresArgs& args() const { return args_; }

 private:
  TokenScoresArgs args_;
  const Pool<FloatBuffer>::Loan memory_;
  std::vector<std::int32_t> table_;
};

}  // namespace

std::int64_t window_queries(const TokenScoresArgs& args, std::int64_t most_lanes) {
  return std::min(args.window, std::max<std::int64_t>(1, most_lanes / args.group_size()));
}

std::int64_t importance_floats(const TokenScoresArgs& args) {
  const std::int64_t lanes = window_queries(args, kScoreLanes) * args.group_size();
  return lanes * (args.stored.head_dim + args.padded());
}

std::string find_fault(const TokenScoresArgs& args) {
  std::string fault;
  for (std::int64_t row = 0; row < args.stored.rows && fault.empty(); ++row) fault = check_row(args, row);
  return fault;
}

void token_scores(const TokenScoresArgs& args, const Parallel& parallel) {
  if (!args.has_records()) return Call(args, parallel).run();
  const DecodedKeys keys(args, parallel);
  Call(keys.args(), parallel).run();
}

}  // namespace ew
