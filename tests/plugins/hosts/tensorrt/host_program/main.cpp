// Runs the tests: all of them, or those whose names are given.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "check.h"

int main(int count, char** arguments) {
  int failed = 0, ran = 0;
  for (const auto& [name, body] : check::tests()) {
    if (count > 1 && std::none_of(arguments + 1, arguments + count, [&](const char* one) { return name == one; }))
      continue;
    ++ran;
    try {
      body();
    } catch (const std::exception& error) {
      std::printf("FAILED %s: %s\n", name.c_str(), error.what());
      ++failed;
    }
  }
  std::printf("%d of %d failed\n", failed, ran);
  return failed == 0 && ran > 0 ? 0 : 1;
}
