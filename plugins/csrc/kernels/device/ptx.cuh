// The device functions of device.cuh as PTX; emulation/device.h has the same ones for a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#define EW_DEVICE __device__ __forceinline__
#define EW_KERNEL(threads, blocks) static __global__ void __launch_bounds__(threads, blocks)
#define EW_CONSTANT const __grid_constant__
#define EW_UNROLL _Pragma("unroll")
#define EW_ROLLED _Pragma("unroll 1")  // where an unrolled loop would take registers that others need

namespace ew {

EW_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
EW_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
EW_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
EW_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
EW_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
EW_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
EW_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
EW_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }

EW_DEVICE void sync_block() { __syncthreads(); }
EW_DEVICE void sync_warp() { __syncwarp(); }

// The block's dynamic shared memory, aligned to 128 bytes.
EW_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char ew_shared_memory[];
  return ew_shared_memory;
}

template <class T>
EW_DEVICE T shuffle_xor(T x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <class T>
EW_DEVICE T shuffle(T x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane);
}
EW_DEVICE unsigned ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }

EW_DEVICE float bits_to_float(std::uint32_t bits) { return __uint_as_float(bits); }
EW_DEVICE std::uint32_t float_to_bits(float x) { return __float_as_uint(x); }

EW_DEVICE float half_to_float(std::uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
// Rounds to nearest even; overflows to infinity.
EW_DEVICE std::uint16_t float_to_half(float x) {
  std::uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
EW_DEVICE std::uint32_t pack_half2(float low, float high) {
  std::uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
EW_DEVICE std::uint32_t half2_sub(std::uint32_t a, std::uint32_t b) {
  std::uint32_t c;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}
EW_DEVICE std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b) {
  std::uint32_t c;
  asm("mul.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}
EW_DEVICE std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// The same for two bfloat16 in each word.
EW_DEVICE std::uint32_t bfloat2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
// Byte i of the result is byte (selector >> 4 i) & 7 of a (0 to 3) and b (4 to 7).
EW_DEVICE std::uint32_t byte_permute(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// 2^x and log2 x to about 2 units in the last place.
EW_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
EW_DEVICE float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

EW_DEVICE float error_function(float x) { return erff(x); }
EW_DEVICE int count_bits(unsigned x) { return __popc(x); }
EW_DEVICE float inverse_sqrt(float x) { return rsqrtf(x); }
EW_DEVICE float square_root(float x) { return __fsqrt_rn(x); }

// c[16, 8] += a[16, 16] b[16, 8] of halves, sums in float. With g = lane / 4 and i = lane % 4 a lane holds:
// a[0]: (g, 2 i), (g, 2 i + 1); a[1]: row g + 8; a[2]: columns 2 i + 8, 2 i + 9 of row g; a[3]: those of row g + 8.
// b[0]: (2 i, g), (2 i + 1, g); b[1]: rows 2 i + 8, 2 i + 9. c[0], c[1]: (g, 2 i), (g, 2 i + 1); c[2], c[3]: row g + 8.
EW_DEVICE void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of bfloat16.
EW_DEVICE void mma_16x8x16_bfloat16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of halves from shared memory. Lane l gives the address of row l % 8 (16 bytes, aligned) of matrix
// l / 8; lane l gets elements (l / 4, 2 (l % 4)) and the next of each matrix, or with _transposed of its transpose.
EW_DEVICE void load_matrices(std::uint32_t (&to)[4], const void* row) {
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
EW_DEVICE void load_matrices_transposed(std::uint32_t (&to)[4], const void* row) {
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
}
// Transposes the 8 x 8 matrix of halves whose elements (l / 4, 2 (l % 4)) and the next lane l holds.
EW_DEVICE std::uint32_t transpose_matrix(std::uint32_t x) {
  std::uint32_t y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Copies 16 bytes from global to shared memory in the background, both aligned to 16; zeros where `valid` is false (the
// address must be one that may be read all the same). They are there after copy_wait.
EW_DEVICE void copy_async_16(void* to, const void* from, bool valid = true) {
  const std::uint32_t address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes)
               : "memory");
}
EW_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the newest kPending groups of this thread have arrived; others see them after a barrier.
template <int kPending>
EW_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Words that are read once: past the first cache, from memory that no thread of this kernel writes.
struct alignas(8) Words2 {
  std::uint32_t x[2];
};
struct alignas(16) Words4 {
  std::uint32_t x[4];
};
EW_DEVICE std::uint32_t load_once(const std::uint32_t* from) {
  std::uint32_t x;
  asm("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(x) : "l"(from));
  return x;
}
EW_DEVICE Words2 load_once(const Words2* from) {
  Words2 w;
  asm("ld.global.nc.L1::no_allocate.v2.b32 {%0,%1}, [%2];" : "=r"(w.x[0]), "=r"(w.x[1]) : "l"(from));
  return w;
}
EW_DEVICE Words4 load_once(const Words4* from) {
  Words4 w;
  asm("ld.global.nc.L1::no_allocate.v4.b32 {%0,%1,%2,%3}, [%4];"
      : "=r"(w.x[0]), "=r"(w.x[1]), "=r"(w.x[2]), "=r"(w.x[3])
      : "l"(from));
  return w;
}

EW_DEVICE int atomic_add(int* to, int x) { return atomicAdd(to, x); }
EW_DEVICE void fence_device() { __threadfence(); }

}  // namespace ew
