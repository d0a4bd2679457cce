#include "cpu/linear/expert_mixture.h"

#include <algorithm>
#include <vector>

#include "cpu/threads/fault.h"
#include "cpu/threads/rows.h"
#include "cpu/threads/scratch.h"

namespace ew {
namespace {

constexpr std::int64_t kMostVisits = 1 << 12;  // at once: it bounds what a call keeps in memory

// Visits that follow each other in the order of experts and go to one expert, as far as they share a task.
struct Group {
  std::int64_t expert, begin, count;
};

// Pairs of panels [first, last) of a group's product.
struct GroupTask {
  const Group* group;
  std::int64_t first, last;
};

// What a call works with. A visit is a token's way through one of its experts; visits are in the order of experts, and
// those of an expert in the order of tokens.
struct MixtureScratch {
  FloatBuffer prepared, inner, outer;
  std::vector<std::int64_t> ends;    // [experts]: the end of each one's visits
  std::vector<std::int64_t> visits;  // [visits]: t * chosen + k
  std::vector<std::int64_t> places;  // the inverse: of each token's choice, its visit
  std::vector<Group> groups;
  std::vector<GroupTask> tasks;
};

// One pool for all nodes, which run one after another: a call's memory is large.
Pool<MixtureScratch>& scratches() {
  static Pool<MixtureScratch> pool;
  return pool;
}

// Put the visits in order; args has few enough tokens for one round.
void order_visits(const ExpertMixtureArgs& args, MixtureScratch& scratch) {
  const std::int64_t visits = args.tokens * args.chosen;
  scratch.ends.assign(static_cast<std::size_t>(args.experts) + 1, 0);
  scratch.visits.resize(static_cast<std::size_t>(visits));
  scratch.places.resize(static_cast<std::size_t>(visits));
  for (std::int64_t i = 0; i < visits; ++i) ++scratch.ends[args.ids[i] + 1];
  for (std::int64_t e = 0; e < args.experts; ++e) scratch.ends[e + 1] += scratch.ends[e];
  for (std::int64_t i = 0; i < visits; ++i) {
    const std::int64_t place = scratch.ends[args.ids[i]]++;  // the beginning becomes the end
    scratch.visits[place] = i;
    scratch.places[i] = place;
  }
}

// Divide the visits of each expert so that a group's prepared rows stay near a core.
void make_groups(const ExpertMixtureArgs& args, std::int64_t row_bytes, MixtureScratch& scratch) {
  const std::int64_t most = most_task_rows(row_bytes);
  scratch.groups.clear();
  for (std::int64_t e = 0, begin = 0; e < args.experts; begin = scratch.ends[e++]) {
    const std::int64_t count = scratch.ends[e] - begin, parts = (count + most - 1) / most;
    for (std::int64_t part = 0; part < parts; ++part) {
      const std::int64_t first = count * part / parts, last = count * (part + 1) / parts;
      scratch.groups.push_back({e, begin + first, last - first});
    }
  }
}

// A product of all visits with their experts' matrices, which follow each other at `whole`.panels.
void multiply(const BlockLinearArgs& whole, const PreparedRows& rows, MixtureScratch& scratch,
              const Parallel& parallel) {
  const PanelShape shape = whole.shape();
  const std::int64_t pairs = PanelPair::pairs(whole);
  scratch.tasks.clear();
  for (const Group& group : scratch.groups) {
    const std::int64_t share = (kTasks * group.count + whole.tokens - 1) / whole.tokens;
    const std::int64_t runs = std::min(std::max<std::int64_t>(share, 1), pairs);
    for (std::int64_t run = 0; run < runs; ++run)
      scratch.tasks.push_back({&group, pairs * run / runs, pairs * (run + 1) / runs});
  }
  const auto product = product_kernel(whole);
  auto body = [&](std::size_t i) {
    const GroupTask& task = scratch.tasks[i];
    BlockLinearArgs args = whole;
    args.panels += task.group->expert * shape.panels() * shape.panel_bytes();
    if (args.bias) args.bias += task.group->expert * args.rows;
    for (std::int64_t pair = task.first; pair < task.last; ++pair)
      product(args, {&rows, task.group->begin, task.group->count, pair, nullptr});
  };
  const bool worthwhile = whole.tokens * whole.columns * whole.rows > kWorthwhile;
  for_each(parallel, worthwhile, scratch.tasks.size(), body);
}

// Prepare row `visit` of a product from a row of x that may be another one.
void prepare_visits(const BlockLinearArgs& whole, const PreparedRows& rows, const std::int64_t* tokens,
                    std::int64_t chosen, const Parallel& parallel) {
  const auto prepare_row = prepare_row_kernel();
  auto body = [&](std::size_t i) {
    const std::int64_t visit = static_cast<std::int64_t>(i);
    BlockLinearArgs args = whole;
    if (tokens) args.x += (tokens[visit] / chosen - visit) * args.columns;
    prepare_row(args, rows, visit);
  };
  for_each(parallel, whole.tokens * whole.columns > kWorthwhile, static_cast<std::size_t>(whole.tokens), body);
}

void sum_visits(const ExpertMixtureArgs& args, const float* outer, const std::int64_t* places,
                const Parallel& parallel) {
  for_rows(parallel, args.tokens, args.chosen * args.columns, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      float* out = args.out + token * args.columns;
      std::fill(out, out + args.columns, 0.0f);
      for (std::int64_t k = 0; k < args.chosen; ++k) {
        const float weight = args.weights[token * args.chosen + k];
        const float* made = outer + places[token * args.chosen + k] * args.columns;
        for (std::int64_t i = 0; i < args.columns; ++i) out[i] += weight * made[i];
      }
    }
  });
}

void run_round(const ExpertMixtureArgs& args, MixtureScratch& scratch, const Parallel& parallel) {
  const std::int64_t visits = args.tokens * args.chosen;
  order_visits(args, scratch);

  BlockLinearArgs up{up_attributes(args)};
  up.slope = args.slope, up.limit = args.limit;
  up.x = args.x, up.panels = args.up, up.bias = args.up_bias, up.tokens = visits;
  up.out = scratch.inner.reserve(static_cast<std::size_t>(visits * args.inner));
  const PreparedRows of_x = PreparedRows::reserve(scratch.prepared, up.shape(), visits, activations_of(up));
  make_groups(args, of_x.row_bytes() / of_x.columns * std::max(args.columns, args.inner), scratch);
  prepare_visits(up, of_x, scratch.visits.data(), args.chosen, parallel);
  multiply(up, of_x, scratch, parallel);

  BlockLinearArgs down{down_attributes(args)};
  down.x = up.out, down.panels = args.down, down.bias = args.down_bias, down.tokens = visits;
  down.out = scratch.outer.reserve(static_cast<std::size_t>(visits * args.columns));
  const PreparedRows of_inner = PreparedRows::reserve(scratch.prepared, down.shape(), visits, activations_of(down));
  prepare_visits(down, of_inner, nullptr, 1, parallel);
  multiply(down, of_inner, scratch, parallel);
  sum_visits(args, down.out, scratch.places.data(), parallel);
}

}  // namespace

std::string find_fault(const ExpertMixtureArgs& args) {
  for (std::int64_t i = 0; i < args.tokens * args.chosen; ++i)
    if (args.ids[i] < 0 || args.ids[i] >= args.experts)
      return expected("ids[" + std::to_string(i / args.chosen) + ", " + std::to_string(i % args.chosen) + "]",
                      args.ids[i], "0 to " + std::to_string(args.experts - 1));
  return {};
}

void expert_mixture(const ExpertMixtureArgs& args, const Parallel& parallel) {
  Pool<MixtureScratch>::Loan scratch(scratches());
  const std::int64_t step = std::max<std::int64_t>(kMostVisits / std::max<std::int64_t>(args.chosen, 1), 1);
  for (std::int64_t begin = 0; begin < args.tokens; begin += step) {
    ExpertMixtureArgs round = args;
    round.x += begin * args.columns, round.out += begin * args.columns;
    round.ids += begin * args.chosen, round.weights += begin * args.chosen;
    round.tokens = std::min(step, args.tokens - begin);
    run_round(round, *scratch, parallel);
  }
}

}  // namespace ew
