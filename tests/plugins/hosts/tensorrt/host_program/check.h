// Checks and the list of tests of a small test program.
#pragma once

#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace check {

struct Failed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::vector<std::pair<std::string, std::function<void()>>>& tests() {
  static std::vector<std::pair<std::string, std::function<void()>>> all;
  return all;
}

struct Registration {
  Registration(const char* name, std::function<void()> body) { tests().emplace_back(name, std::move(body)); }
};

inline std::string place(const char* file, int line) { return std::string(file) + ":" + std::to_string(line) + ": "; }

template <class Got, class Expected>
void equal(const Got& got, const Expected& expected, const std::string& what) {
  if (got == expected) return;
  std::ostringstream text;
  text << what << "\n  got      " << got << "\n  expected " << expected;
  throw Failed(text.str());
}

}  // namespace check

#define TEST(name)                                               \
  static void name();                                            \
  static const check::Registration register_##name(#name, name); \
  static void name()
#define CHECK(condition) \
  if (!(condition)) throw check::Failed(check::place(__FILE__, __LINE__) + #condition)
#define CHECK_EQUAL(got, expected) check::equal(got, expected, check::place(__FILE__, __LINE__) + #got)
