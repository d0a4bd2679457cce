// The device functions of kernels/device/device.cuh on a CPU: the threads of a block are fibers, and a collective of a
// warp happens when all its lanes have arrived. For tests: it checks results and the rules of synchronisation, not
// speed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation/fibers.h"

#define EW_DEVICE inline
#define EW_KERNEL(threads, blocks) static void
#define EW_CONSTANT const
#define EW_UNROLL
#define EW_ROLLED

namespace ew {

inline int thread_index() { return emulation::current().thread; }
inline int thread_count() { return emulation::current().block->threads; }
inline int block_x() { return emulation::current().block->x; }
inline int block_y() { return emulation::current().block->y; }
inline int block_z() { return emulation::current().block->z; }
inline int grid_x() { return emulation::current().block->grid_x; }
inline int grid_y() { return emulation::current().block->grid_y; }
inline int grid_z() { return emulation::current().block->grid_z; }
inline unsigned char* shared_memory() { return emulation::current().block->shared; }

inline void sync_block() { emulation::wait_for_block(); }
inline void sync_warp() {
  emulation::wait_for_warp("sync_warp", nullptr, [](void* const*) {});
}

template <class T>
T shuffle(T x, int lane) {
  struct Operand {
    T x, result;
    int lane;
  } mine{x, x, lane};
  emulation::wait_for_warp("shuffle", &mine, [](void* const* lanes) {
    for (int i = 0; i < 32; ++i) {
      Operand& to = *static_cast<Operand*>(lanes[i]);
      to.result = static_cast<Operand*>(lanes[to.lane & 31])->x;
    }
  });
  return mine.result;
}
template <class T>
T shuffle_xor(T x, int mask) {
  return shuffle(x, (thread_index() % 32) ^ mask);
}
unsigned ballot(bool vote);

inline float bits_to_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline std::uint32_t float_to_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
float half_to_float(std::uint16_t bits);
std::uint16_t float_to_half(float x);
inline std::uint32_t pack_half2(float low, float high) {
  return float_to_half(low) | (static_cast<std::uint32_t>(float_to_half(high)) << 16);
}
std::uint32_t half2_sub(std::uint32_t a, std::uint32_t b);
std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b);
std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c);
std::uint32_t bfloat2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c);
inline std::uint32_t byte_permute(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t bytes = a | (static_cast<std::uint64_t>(b) << 32);
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<std::uint32_t>((bytes >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
  return result;
}
inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_log2(float x) { return std::log2(x); }
inline float error_function(float x) { return std::erf(x); }
inline int count_bits(unsigned x) { return __builtin_popcount(x); }
inline float inverse_sqrt(float x) { return 1.0f / std::sqrt(x); }
inline float square_root(float x) { return std::sqrt(x); }

void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
void mma_16x8x16_bfloat16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
void load_matrices(std::uint32_t (&to)[4], const void* row);
void load_matrices_transposed(std::uint32_t (&to)[4], const void* row);
std::uint32_t transpose_matrix(std::uint32_t x);

inline void copy_async_16(void* to, const void* from, bool valid = true) { emulation::copy_later(to, from, valid); }
inline void copy_commit() { emulation::commit_copies(); }
template <int kPending>
void copy_wait() {
  emulation::finish_copies(kPending);
}

struct alignas(8) Words2 {
  std::uint32_t x[2];
};
struct alignas(16) Words4 {
  std::uint32_t x[4];
};
template <class T>
T load_once(const T* from) {
  emulation::check_aligned(from, sizeof(T));
  return *from;
}

inline int atomic_add(int* to, int x) {
  const int before = *to;  // one block after another, one fiber at a time
  *to += x;
  return before;
}
inline void fence_device() {}

}  // namespace ew
