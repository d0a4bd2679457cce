// Fibers: contexts created by makecontext and switched by _setjmp and _longjmp, which are fast because they save no
// signal mask.
#include "emulation/fibers.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ew::emulation {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024, kGuardBytes = 1024;
constexpr unsigned char kPoison = 0xff;  // halves and floats of these bytes are NaN

struct Copy {
  void* to;
  const void* from;
  bool valid;
  int group;
};

enum class State { kReady, kAtBlock, kAtWarp, kEnded };

struct Fiber {
  Thread self{};
  State state = State::kReady;
  bool begun = false;
  jmp_buf place;
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  const char* what = nullptr;
  void* operand = nullptr;
  Collective together = nullptr;
  std::vector<Copy> copies;
  int group = 0;  // of the copies that are not committed
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  const std::function<void()>* body = nullptr;
  Fiber* running = nullptr;
  jmp_buf scheduler;
  ucontext_t origin;
  std::exception_ptr error;
};

Machine& machine() {
  static thread_local Machine instance;
  return instance;
}

[[noreturn]] void back_to_scheduler() { _longjmp(machine().scheduler, 1); }

void begin_fiber() {
  Machine& m = machine();
  try {
    (*m.body)();
    if (!m.running->copies.empty()) throw std::runtime_error("a thread ended before its copies were waited for");
  } catch (...) {
    m.error = std::current_exception();
  }
  m.running->state = State::kEnded;
  back_to_scheduler();
}

void pause(State state) {
  Fiber& fiber = *machine().running;
  fiber.state = state;
  if (_setjmp(fiber.place) == 0) back_to_scheduler();
}

void resume(Fiber& fiber) {
  Machine& m = machine();
  m.running = &fiber;
  if (_setjmp(m.scheduler) != 0) return;  // back_to_scheduler
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, begin_fiber, 0);
  setcontext(&fiber.context);
}

std::string place_of(const Fiber& fiber) {
  const Block& b = *fiber.self.block;
  return "block (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " + std::to_string(b.z) + "), thread " +
         std::to_string(fiber.self.thread);
}

// Runs the collective of a warp whose lanes have all arrived; whether they had.
bool meet(Machine& m, int first, int threads) {
  const int count = std::min(32, threads - first);
  void* operands[32];
  int waiting = 0;
  const Fiber* one = nullptr;
  for (int i = 0; i < count; ++i) {
    const Fiber& fiber = *m.fibers[static_cast<std::size_t>(first + i)];
    if (fiber.state != State::kAtWarp) continue;
    ++waiting;
    operands[i] = fiber.operand;
    if (one != nullptr && std::strcmp(one->what, fiber.what) != 0)
      throw std::runtime_error(place_of(fiber) + " is at " + fiber.what + " while another lane is at " + one->what);
    one = &fiber;
  }
  if (waiting < count || count < 32) return false;
  one->together(operands);
  for (int i = 0; i < count; ++i) m.fibers[static_cast<std::size_t>(first + i)]->state = State::kReady;
  return true;
}

bool release_block(Machine& m, int threads) {
  int waiting = 0, ended = 0;
  for (int i = 0; i < threads; ++i) {
    waiting += m.fibers[static_cast<std::size_t>(i)]->state == State::kAtBlock;
    ended += m.fibers[static_cast<std::size_t>(i)]->state == State::kEnded;
  }
  if (waiting == 0 || waiting + ended < threads) return false;
  if (ended > 0) throw std::runtime_error("threads wait at sync_block for others that have ended");
  for (int i = 0; i < threads; ++i) m.fibers[static_cast<std::size_t>(i)]->state = State::kReady;
  return true;
}

void run_block(Machine& m, const Block& block, bool backwards) {
  for (int i = 0; i < block.threads; ++i) {
    Fiber& fiber = *m.fibers[static_cast<std::size_t>(i)];
    fiber.self = {i, &block};
    fiber.state = State::kReady;
    fiber.begun = false;
    fiber.copies.clear();
    fiber.group = 0;
  }
  for (;;) {
    bool moved = false;
    for (int i = 0; i < block.threads; ++i) {
      Fiber& fiber = *m.fibers[static_cast<std::size_t>(backwards ? block.threads - 1 - i : i)];
      if (fiber.state != State::kReady) continue;
      resume(fiber);
      moved = true;
      if (m.error) std::rethrow_exception(std::exchange(m.error, nullptr));
    }
    for (int first = 0; first < block.threads; first += 32) moved |= meet(m, first, block.threads);
    moved |= release_block(m, block.threads);
    if (moved) continue;
    for (int i = 0; i < block.threads; ++i) {
      const Fiber& fiber = *m.fibers[static_cast<std::size_t>(i)];
      if (fiber.state == State::kEnded) continue;
      throw std::runtime_error(place_of(fiber) + " waits for ever at " +
                               (fiber.state == State::kAtBlock ? "sync_block" : fiber.what));
    }
    return;
  }
}

}  // namespace

const Thread& current() { return machine().running->self; }

void wait_for_block() { pause(State::kAtBlock); }

void wait_for_warp(const char* what, void* operand, Collective together) {
  Fiber& fiber = *machine().running;
  fiber.what = what;
  fiber.operand = operand;
  fiber.together = together;
  pause(State::kAtWarp);
}

void copy_later(void* to, const void* from, bool valid) {
  check_aligned(to, 16);
  check_aligned(from, 16);
  Fiber& fiber = *machine().running;
  fiber.copies.push_back({to, from, valid, fiber.group});
}

void commit_copies() { ++machine().running->group; }

void finish_copies(int pending) {
  Fiber& fiber = *machine().running;
  const int end = fiber.group - pending;
  const auto is_due = [end](const Copy& copy) { return copy.group < end; };
  for (const Copy& copy : fiber.copies) {
    if (!is_due(copy)) continue;
    if (copy.valid)
      std::memcpy(copy.to, copy.from, 16);
    else
      std::memset(copy.to, 0, 16);
  }
  fiber.copies.erase(std::remove_if(fiber.copies.begin(), fiber.copies.end(), is_due), fiber.copies.end());
}

void check_aligned(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0)
    throw std::runtime_error(place_of(*machine().running) + ": an access of " + std::to_string(bytes) +
                             " bytes is not aligned");
}

void run_grid(int grid_x, int grid_y, int grid_z, int threads, std::size_t shared_bytes,
              const std::function<void()>& body) {
  Machine& m = machine();
  m.body = &body;
  while (m.fibers.size() < static_cast<std::size_t>(threads)) m.fibers.push_back(std::make_unique<Fiber>());
  std::vector<unsigned char> memory(shared_bytes + kGuardBytes + 128);
  unsigned char* shared = memory.data() + (128 - reinterpret_cast<std::uintptr_t>(memory.data()) % 128) % 128;
  int number = 0;
  for (int z = 0; z < grid_z; ++z)
    for (int y = 0; y < grid_y; ++y)
      for (int x = 0; x < grid_x; ++x) {
        std::memset(shared, kPoison, shared_bytes + kGuardBytes);
        const Block block{x, y, z, grid_x, grid_y, grid_z, threads, shared};
        run_block(m, block, number++ % 2 == 1);
        const unsigned char* guard = shared + shared_bytes;
        if (std::any_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte != kPoison; }))
          throw std::runtime_error("a thread wrote beyond the block's " + std::to_string(shared_bytes) +
                                   " bytes of shared memory");
      }
}

}  // namespace ew::emulation
