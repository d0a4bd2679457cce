// Loops that run on the host's threads.
#pragma once

#include <cstddef>

namespace ew {

class Parallel {
 public:
  virtual ~Parallel() = default;
  // Call body(data, i) for i in [0, count), in any order and on any threads; body throws nothing.
  virtual void run(void (*body)(void* data, std::size_t i), std::size_t count, void* data) const = 0;
};

// Parallel::run for a callable, in place on this thread when the work is too small to hand out.
template <class Body>
void for_each(const Parallel& parallel, bool worthwhile, std::size_t count, Body& body) {
  if (!worthwhile || count < 2) {
    for (std::size_t i = 0; i < count; ++i) body(i);
    return;
  }
  parallel.run([](void* data, std::size_t i) { (*static_cast<Body*>(data))(i); }, count, &body);
}

}  // namespace ew
