#include "cpu/lora/add_lora.h"

#include <algorithm>
#include <cstring>

namespace ew {
namespace {

constexpr std::int64_t kWorthwhile = 1 << 17;                       // multiply-adds: about the price of waking a thread
constexpr std::int64_t kTokens = 32, kRanks = 16, kOutputs = 1024;  // of one task

class Call {
 public:
  Call(const AddLoraArgs& args, LoraScratch& scratch, const Parallel& parallel)
      : args_(args), scratch_(scratch), parallel_(parallel) {}

  void run() {
    copy_base();
    order_tokens();
    if (scratch_.order.empty()) return;
    make_tasks();
    const std::int64_t count = static_cast<std::int64_t>(scratch_.order.size());
    run_all(scratch_.inner, lora_inner_kernel(), count * args_.inner() * args_.size);
    run_all(scratch_.outer, lora_outer_kernel(), count * args_.rank * args_.outputs);
  }

 private:
  std::int64_t entry_of(std::int64_t token) const {
    const std::int64_t entry = args_.index[token];
    return entry > 0 && entry < args_.capacity ? entry : 0;
  }

  // Tokens without an adapter have base as their result.
  void copy_base() const {
    if (args_.sum == args_.base) return;
    const std::size_t bytes = static_cast<std::size_t>(args_.outputs) * sizeof(float);
    for (std::int64_t token = 0; token < args_.tokens; ++token)
      if (entry_of(token) == 0)
        std::memcpy(args_.sum + token * args_.outputs, args_.base + token * args_.outputs, bytes);
  }

  void order_tokens() {
    scratch_.order.clear();
    for (std::int64_t token = 0; token < args_.tokens; ++token)
      if (entry_of(token) > 0) scratch_.order.push_back(token);
    std::stable_sort(scratch_.order.begin(), scratch_.order.end(),
                     [&](std::int64_t one, std::int64_t other) { return entry_of(one) < entry_of(other); });
  }

  void make_tasks() {
    const std::int64_t count = static_cast<std::int64_t>(scratch_.order.size()), inner = args_.inner();
    float* numbers = scratch_.numbers.reserve(static_cast<std::size_t>(count * inner));
    scratch_.inner.clear();
    scratch_.outer.clear();
    for (std::int64_t begin = 0; begin < count;) {
      const std::int64_t* tokens = scratch_.order.data() + begin;
      const std::int64_t entry = entry_of(tokens[0]);
      std::int64_t end = begin;
      while (end < count && end < begin + kTokens && entry_of(scratch_.order[static_cast<std::size_t>(end)]) == entry)
        ++end;
      for (std::size_t s = 0; s < args_.segments.size(); ++s) {
        const LoraTask whole{tokens, end - begin, entry, static_cast<std::int64_t>(s), 0, 0, numbers + begin * inner};
        divide(scratch_.inner, whole, args_.rank, kRanks);
        divide(scratch_.outer, whole, args_.segments[s].outputs, kOutputs);
      }
      begin = end;
    }
  }

  static void divide(std::vector<LoraTask>& tasks, LoraTask task, std::int64_t size, std::int64_t step) {
    for (task.begin = 0; task.begin < size; task.begin += step) {
      task.end = std::min(task.begin + step, size);
      tasks.push_back(task);
    }
  }

  template <class Kernel>
  void run_all(const std::vector<LoraTask>& tasks, Kernel kernel, std::int64_t work) const {
    auto one = [&](std::size_t i) { kernel(args_, tasks[i]); };
    for_each(parallel_, work > kWorthwhile, tasks.size(), one);
  }

  const AddLoraArgs& args_;
  LoraScratch& scratch_;
  const Parallel& parallel_;
};

}  // namespace

void add_lora(const AddLoraArgs& args, LoraScratch& scratch, const Parallel& parallel) {
  Call(args, scratch, parallel).run();
}

}  // namespace ew
