#include "cpu/quantise/scale_sweep.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#if defined(EW_X86) && defined(__GNUC__) && !defined(__clang__)
#define EW_CLONES __attribute__((target_clones("avx512f", "avx2,fma", "default")))
#else
#define EW_CLONES
#endif

namespace ew {
namespace {

constexpr double kMargin = 8;  // units of the last place between a scale and the ends of its interval

EW_CLONES void add_scaled(float* to, const float* from, float factor, std::int64_t size) {
  for (std::int64_t i = 0; i < size; ++i) to[i] += factor * from[i];
}

EW_CLONES void add_scaled(double* to, const double* from, double factor, std::int64_t size) {
  for (std::int64_t i = 0; i < size; ++i) to[i] += factor * from[i];
}

// Codes on one side of 0: the magnitudes of weight / scale at which they change, ascending, and by how much.
struct Side {
  std::vector<double> middle, step;
};

Side side_of(const double* grid, std::int64_t levels, bool negative) {
  Side side;
  for (std::int64_t i = 0; i + 1 < levels; ++i) {
    const std::int64_t at = negative ? levels - 2 - i : i;
    const double middle = (grid[at] + grid[at + 1]) / 2, step = grid[at + 1] - grid[at];
    if (negative ? middle < 0 : middle > 0) {
      side.middle.push_back(std::fabs(middle));
      side.step.push_back(negative ? -step : step);
    }
  }
  return side;
}

// At `scale` the code of `column` moves one step away from 0.
template <class T>
class Transition;

template <>
class Transition<double> {
 public:
  Transition(double scale, std::int32_t column) : scale_(scale), column_(column) {}
  double scale() const { return scale_; }
  std::int32_t column() const { return column_; }
  bool operator<(const Transition& other) const {
    return scale_ != other.scale_ ? scale_ < other.scale_ : column_ < other.column_;
  }

 private:
  double scale_;
  std::int32_t column_;
};

// In one number, which sorts without branches: positive floats are ordered as their bits are.
template <>
class Transition<float> {
 public:
  Transition(float scale, std::int32_t column) {
    std::uint32_t bits;
    std::memcpy(&bits, &scale, sizeof bits);
    key_ = std::uint64_t{bits} << 32 | static_cast<std::uint32_t>(column);
  }
  float scale() const {
    const auto bits = static_cast<std::uint32_t>(key_ >> 32);
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return scale;
  }
  std::int32_t column() const { return static_cast<std::int32_t>(key_ & 0xffffffffu); }
  bool operator<(const Transition& other) const { return key_ < other.key_; }

 private:
  std::uint64_t key_;
};

template <class T>
class Sweeper {
 public:
  explicit Sweeper(const ScaleSweep& sweep)
      : sweep_(sweep),
        sides_{side_of(sweep.grid, sweep.levels, false), side_of(sweep.grid, sweep.levels, true)},
        reached_(static_cast<std::size_t>(sweep.columns)),
        level_(static_cast<std::size_t>(sweep.columns)) {}

  void run(std::int64_t row) {
    weights_ = static_cast<const T*>(sweep_.weights) + row * sweep_.columns;
    targets_ = sweep_.targets + row * sweep_.columns;
    list();
    const std::int64_t count = visit(row);
    T* codes = static_cast<T*>(sweep_.codes) + row * sweep_.columns;
    std::fill_n(codes, sweep_.columns, T(0));
    std::fill(level_.begin(), level_.end(), 0);
    for (std::int64_t j = 0; j < count; ++j) codes[transitions_[j].column()] += static_cast<T>(take(j));
  }

 private:
  void list() {
    transitions_.clear();
    for (std::int64_t i = 0; i < sweep_.columns; ++i) {
      if (weights_[i] == T(0)) continue;
      const T size = std::fabs(weights_[i]);
      for (double middle : side(i).middle)
        transitions_.emplace_back(size / static_cast<T>(middle), static_cast<std::int32_t>(i));
    }
    std::sort(transitions_.begin(), transitions_.end());
    std::reverse(transitions_.begin(), transitions_.end());
  }

  const Side& side(std::int64_t column) const { return sides_[weights_[column] < T(0)]; }

  // By how much transition j moves its code; called once each, in order.
  double take(std::int64_t j) {
    const std::int32_t column = transitions_[j].column();
    return side(column).step[level_[column]++];
  }

  // Notes the row's best scale and error; returns how many transitions lie above it.
  std::int64_t visit(std::int64_t row) {
    const T* block = static_cast<const T*>(sweep_.block);
    std::fill(reached_.begin(), reached_.end(), T(0));
    std::fill(level_.begin(), level_.end(), 0);
    double alpha = 0, beta = 0, best = std::numeric_limits<double>::infinity(), chosen = 0;
    std::int64_t taken = 0;
    const auto count = static_cast<std::int64_t>(transitions_.size());
    for (std::int64_t j = 0; j < count; ++j) {
      const std::int64_t i = transitions_[j].column();
      const double delta = take(j);
      const T* line = sweep_.is_diagonal ? block + i : block + i * sweep_.columns;
      const T diagonal = sweep_.is_diagonal ? line[0] : line[i];
      alpha += delta * targets_[i];
      beta += delta * (2 * static_cast<double>(reached_[i]) + delta * static_cast<double>(diagonal));
      if (sweep_.is_diagonal)
        reached_[i] += static_cast<T>(delta) * diagonal;
      else
        add_scaled(reached_.data(), line, static_cast<T>(delta), sweep_.columns);
      const double high = transitions_[j].scale(), low = j + 1 < count ? transitions_[j + 1].scale() : 0;
      const double margin = kMargin * std::numeric_limits<T>::epsilon() * high;
      if (high - low <= 2 * margin || alpha <= 0 || beta <= 0) continue;
      const double centre = alpha / beta;
      const double scale = sweep_.refit ? centre : std::min(std::max(centre, low + margin), high - margin);
      const double error = scale * (scale * beta - 2 * alpha);
      if (error < best) best = error, chosen = scale, taken = j + 1;
    }
    sweep_.errors[row] = best;
    sweep_.scales[row] = chosen;
    return taken;
  }

  const ScaleSweep& sweep_;
  const Side sides_[2];  // of positive and of negative weights
  const T* weights_ = nullptr;
  const double* targets_ = nullptr;
  std::vector<Transition<T>> transitions_;  // descending
  std::vector<T> reached_;                  // H q
  std::vector<std::int32_t> level_;         // transitions that each column has taken
};

template <class T>
void sweep_rows(const ScaleSweep& sweep) {
  Sweeper<T> sweeper(sweep);
  for (std::int64_t row = 0; row < sweep.rows; ++row) sweeper.run(row);
}

}  // namespace

void sweep_scales(const ScaleSweep& sweep) {
  if (sweep.is_double)
    sweep_rows<double>(sweep);
  else
    sweep_rows<float>(sweep);
}

}  // namespace ew
