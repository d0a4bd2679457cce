// Runs the blocks of a launch on the CPU, one after another; each thread of a block is a fiber.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace ew::emulation {

struct Block {
  int x, y, z, grid_x, grid_y, grid_z, threads;
  unsigned char* shared;
};

struct Thread {
  int thread;
  const Block* block;
};

// The thread that is running.
const Thread& current();

// Returns once every thread of the block that has not ended is here.
void wait_for_block();

// Returns once all 32 lanes are here, with the same `what`; `together` is called once, with every lane's operand.
using Collective = void (*)(void* const* operands);
void wait_for_warp(const char* what, void* operand, Collective together);

// A copy that is not there before finish_copies(pending) has seen all but the newest `pending` committed groups.
void copy_later(void* to, const void* from, bool valid);
void commit_copies();
void finish_copies(int pending);

// Throws where a wide access is not aligned to its size: a GPU would stop.
void check_aligned(const void* address, std::size_t bytes);

// Runs `body` for every thread of every block. Shared memory is filled with NaNs before each block, and the order of
// the threads between two barriers differs from block to block, so that what relies on either fails.
//
// Throws std::runtime_error where threads wait for each other for ever, lanes of a warp meet at different collectives,
// a thread writes beyond its block's shared memory, or a copy is left unfinished.
void run_grid(int grid_x, int grid_y, int grid_z, int threads, std::size_t shared_bytes,
              const std::function<void()>& body);

}  // namespace ew::emulation
