// Runs each collective of kernels/device/device.cuh once, so that a test can hold PTX and its emulation to the same
// numbers.
#include "abi/cuda_calls.h"
#include "launchers/refuse.h"

namespace ew::cuda {
namespace {

// All [32 lanes, ...] words; matrices: 32 rows of 16 bytes that go to shared memory.
struct Probe {
  const std::uint32_t *a, *b;                                                          // [32, 4], [32, 2]
  const float* c;                                                                      // [32, 4]
  const std::uint32_t* matrices;                                                       // [32, 4]
  float* product;                                                                      // [32, 4]
  std::uint32_t *loaded, *loaded_transposed, *transposed, *shuffled, *voted, *halves;  // [32, 4], [32, 4], then [32]
  float* bfloat_product;                                                               // [32, 4]
  std::uint32_t* bfloats;                                                              // [32]
};

EW_KERNEL(32, 1) probe_kernel(EW_CONSTANT Probe p) {
  const int lane = lane_index();
  std::uint32_t a[4], b[2], loaded[4];
  float c[4];
  for (int i = 0; i < 4; ++i) a[i] = p.a[4 * lane + i];
  for (int i = 0; i < 4; ++i) c[i] = p.c[4 * lane + i];
  for (int i = 0; i < 2; ++i) b[i] = p.b[2 * lane + i];
  mma_16x8x16(c, a, b);
  for (int i = 0; i < 4; ++i) p.product[4 * lane + i] = c[i];
  for (int i = 0; i < 4; ++i) c[i] = p.c[4 * lane + i];
  mma_16x8x16_bfloat16(c, a, b);
  for (int i = 0; i < 4; ++i) p.bfloat_product[4 * lane + i] = c[i];
  p.bfloats[lane] = bfloat2_fma(a[0], b[0], b[1]);
  unsigned char* memory = shared_memory();
  copy_async_16(memory + 16 * lane, p.matrices + 4 * lane);
  copy_commit();
  copy_wait<0>();
  sync_block();
  load_matrices(loaded, memory + 16 * lane);
  for (int i = 0; i < 4; ++i) p.loaded[4 * lane + i] = loaded[i];
  load_matrices_transposed(loaded, memory + 16 * lane);
  for (int i = 0; i < 4; ++i) p.loaded_transposed[4 * lane + i] = loaded[i];
  p.transposed[lane] = transpose_matrix(a[0]);
  p.shuffled[lane] = shuffle_xor(a[1], 5) + shuffle(a[2], 7);
  p.voted[lane] = ballot((a[0] & 1u) != 0);
  p.halves[lane] = half2_fma(a[0], half2_sub(b[0], b[1]), half2_mul(a[1], a[2]));
}

}  // namespace
}  // namespace ew::cuda

extern "C" EW_EXPORT int ew_cuda_probe(const void* const* pointers, void* stream) {
  using namespace ew::cuda;
  return guarded(-1, [&] {
    Probe p;
    const auto words = [pointers](int i) { return static_cast<std::uint32_t*>(const_cast<void*>(pointers[i])); };
    p.a = words(0);
    p.b = words(1);
    p.c = static_cast<const float*>(pointers[2]);
    p.matrices = words(3);
    p.product = static_cast<float*>(const_cast<void*>(pointers[4]));
    p.loaded = words(5);
    p.loaded_transposed = words(6);
    p.transposed = words(7);
    p.shuffled = words(8);
    p.voted = words(9);
    p.halves = words(10);
    p.bfloat_product = static_cast<float*>(const_cast<void*>(pointers[11]));
    p.bfloats = words(12);
    launch("probe", probe_kernel, Grid{}, 32, 512, stream, p);
    return 0;
  });
}
