#include "cpu/rows/clp_emit.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/rows/argmax.h"
#include "cpu/rows/linear.h"

namespace ew {
namespace {

constexpr std::int64_t kWorthwhile = 1 << 17;    // weights read: about the price of waking a thread
constexpr std::int64_t kBlock = 256;             // outputs of one task; fixed, so that no result depends on the threads
constexpr std::int64_t kLastToken = 0x7fffffff;  // ends are 32-bit numbers
constexpr std::int64_t kGroup = 4;               // rows whose logits of a block lie on the stack together

// The likeliest class, at most `extra`; 0 when it is less likely than tau or a score is not finite.
std::int64_t extra_tokens(const float* scores, const ClpEmitArgs& args) {
  std::int64_t top = 0;
  for (std::int64_t c = 0; c < args.classes; ++c) {
    if (!std::isfinite(scores[c])) return 0;
    if (scores[c] > scores[top]) top = c;
  }
  float total = 0.0f;
  for (std::int64_t c = 0; c < args.classes; ++c) total += std::exp(scores[c] - scores[top]);
  return 1.0f / total < args.tau ? 0 : std::min(top, args.extra());
}

float activate(float x, bool silu) {
  return silu ? x / (1.0f + std::exp(-x)) : 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
}

class Emission {
 public:
  Emission(const ClpEmitArgs& args, ClpScratch& scratch, const Parallel& parallel)
      : args_(args), scratch_(scratch), parallel_(parallel), linear_(linear_kernel()), argmax_(argmax_kernel()) {}

  void run() {
    choose_lengths();
    for (std::int64_t row = 0; row < args_.rows; ++row) {
      std::int64_t* tokens = args_.tokens + row * (args_.extra() + 1);
      tokens[0] = args_.greedy[row];
      std::fill_n(tokens + 1, args_.extra(), -1);
      args_.counts[row] = 1;
    }
    if (order_rows() == 0) return;
    fill_inner();
    find_best();
    emit();
  }

 private:
  void choose_lengths() {
    float* scores = scratch_.scores.reserve(static_cast<std::size_t>(args_.rows * args_.classes));
    const LinearArgs classifier = {args_.hidden, args_.rows, args_.size,           args_.classifier_weight,
                                   nullptr,      nullptr,    args_.classifier_bias};
    linear_(classifier, 0, args_.classes, scores, args_.classes);
    scratch_.lengths.resize(static_cast<std::size_t>(args_.rows));
    for (std::int64_t row = 0; row < args_.rows; ++row)
      length(row) = may_emit(row) ? extra_tokens(scores + row * args_.classes, args_) : 0;
  }

  bool may_emit(std::int64_t row) const {
    if (args_.greedy[row] < 0) return false;
    if (!args_.sample_rows) return true;
    const std::int32_t *ends = args_.query_starts + 1, *last = ends + args_.sequences;
    const std::int64_t at = args_.sample_rows[row];
    return at >= 0 && at < kLastToken && std::binary_search(ends, last, at + 1);
  }

  // The rows that emit, the longest first, so that head j is needed by the first needs(j) of them.
  std::int64_t order_rows() {
    scratch_.order.clear();
    scratch_.counts.assign(static_cast<std::size_t>(args_.extra()), 0);
    for (std::int64_t wanted = args_.extra(); wanted >= 1; --wanted) {
      for (std::int64_t row = 0; row < args_.rows; ++row)
        if (length(row) == wanted) scratch_.order.push_back(row);
      scratch_.counts[static_cast<std::size_t>(wanted - 1)] = emitting();
    }
    while (heads_ < args_.extra() && needs(heads_) > 0) ++heads_;
    float* states = scratch_.states.reserve(static_cast<std::size_t>(emitting() * args_.size));
    for (std::int64_t i = 0; i < emitting(); ++i)
      std::memcpy(states + i * args_.size, args_.hidden + row_of(i) * args_.size,
                  static_cast<std::size_t>(args_.size) * sizeof(float));
    states_ = states;
    return emitting();
  }

  void fill_inner() {
    inner_ = scratch_.inner.reserve(static_cast<std::size_t>(heads_ * emitting() * args_.inner));
    const std::int64_t blocks = (args_.inner + kBlock - 1) / kBlock;
    auto task = [&](std::size_t i) {
      const std::int64_t head = static_cast<std::int64_t>(i) / blocks,
                         begin = static_cast<std::int64_t>(i) % blocks * kBlock;
      const std::int64_t end = std::min(begin + kBlock, args_.inner), rows = needs(head);
      const LinearArgs up = {states_,
                             rows,
                             args_.size,
                             args_.up_weight + head * args_.inner * args_.size,
                             nullptr,
                             nullptr,
                             args_.up_bias + head * args_.inner};
      float* out = inner_ + head * emitting() * args_.inner + begin;
      linear_(up, begin, end, out, args_.inner);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t o = 0; o < end - begin; ++o) {
          float& x = out[r * args_.inner + o];
          x = activate(x, args_.activation != 0) + (args_.residual ? states_[r * args_.size + begin + o] : 0.0f);
        }
    };
    for_each(parallel_, heads_ * args_.inner * args_.size > kWorthwhile, static_cast<std::size_t>(heads_ * blocks),
             task);
  }

  // Largest logit of every head, block of the vocabulary and row: blocks are independent, and joined in their order.
  void find_best() {
    blocks_ = (args_.vocab + kBlock - 1) / kBlock;
    const std::size_t slots = static_cast<std::size_t>(heads_ * blocks_ * emitting());
    best_ = scratch_.best.reserve(slots);
    scratch_.best_at.resize(slots);
    auto task = [&](std::size_t i) {
      search(static_cast<std::int64_t>(i) / blocks_, static_cast<std::int64_t>(i) % blocks_);
    };
    for_each(parallel_, heads_ * args_.inner * args_.vocab > kWorthwhile, static_cast<std::size_t>(heads_ * blocks_),
             task);
  }

  void search(std::int64_t head, std::int64_t block) {
    float logits[kGroup * kBlock];
    const std::int64_t begin = block * kBlock, end = std::min(begin + kBlock, args_.vocab), rows = needs(head);
    for (std::int64_t first = 0; first < rows; first += kGroup) {
      const std::int64_t count = std::min(kGroup, rows - first);
      linear_(projection(head, first, count), begin, end, logits, kBlock);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::size_t at = slot(head, block, first + r);
        argmax_(logits + r * kBlock, end - begin, &scratch_.best_at[at], &best_[at]);
      }
    }
  }

  LinearArgs projection(std::int64_t head, std::int64_t first, std::int64_t rows) const {
    const std::int64_t begin = head * args_.vocab * args_.inner;
    const float* x = inner_ + (head * emitting() + first) * args_.inner;
    const float* bias = args_.out_bias + head * args_.vocab;
    if (args_.out_weight) return {x, rows, args_.inner, args_.out_weight + begin, nullptr, nullptr, bias};
    return {x, rows, args_.inner, nullptr, args_.out_codes + begin, args_.out_scales + head * args_.vocab, bias};
  }

  // The lowest index among equals; -1 for a row of a head with nothing finite, or with a NaN.
  std::int64_t token(std::int64_t head, std::int64_t i) const {
    float largest = -__builtin_inff();
    std::int64_t at = -1;
    for (std::int64_t block = 0; block < blocks_; ++block) {
      const std::size_t found = slot(head, block, i);
      if (scratch_.best_at[found] < 0) return -1;
      if (best_[found] > largest) {
        largest = best_[found];
        at = block * kBlock + scratch_.best_at[found];
      }
    }
    return std::isfinite(largest) ? at : -1;
  }

  void emit() {
    for (std::int64_t i = 0; i < emitting(); ++i) {
      const std::int64_t row = row_of(i);
      for (std::int64_t head = 0; head < length(row); ++head) {
        const std::int64_t found = token(head, i);
        if (found < 0) break;
        args_.tokens[row * (args_.extra() + 1) + 1 + head] = found;
        args_.counts[row] = 2 + head;
      }
    }
  }

  std::int64_t& length(std::int64_t row) { return scratch_.lengths[static_cast<std::size_t>(row)]; }
  std::int64_t row_of(std::int64_t i) const { return scratch_.order[static_cast<std::size_t>(i)]; }
  std::int64_t needs(std::int64_t head) const { return scratch_.counts[static_cast<std::size_t>(head)]; }
  std::int64_t emitting() const { return static_cast<std::int64_t>(scratch_.order.size()); }
  std::size_t slot(std::int64_t head, std::int64_t block, std::int64_t i) const {
    return static_cast<std::size_t>((head * blocks_ + block) * emitting() + i);
  }

  const ClpEmitArgs& args_;
  ClpScratch& scratch_;
  const Parallel& parallel_;
  decltype(linear_kernel()) linear_;
  decltype(argmax_kernel()) argmax_;
  const float* states_ = nullptr;
  float *inner_ = nullptr, *best_ = nullptr;
  std::int64_t heads_ = 0, blocks_ = 0;  // heads that any row needs; blocks of the vocabulary
};

}  // namespace

void clp_emit(const ClpEmitArgs& args, ClpScratch& scratch, const Parallel& parallel) {
  Emission(args, scratch, parallel).run();
}

}  // namespace ew
