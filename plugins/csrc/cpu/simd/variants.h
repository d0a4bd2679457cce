// Kernels that are compiled once for each instruction set, and the choice among them at run time.
//
// A header declares such a kernel. A file *_simd.cpp, which the build compiles once for each instruction set, includes
// cpu/simd/simd.h first and defines it; nothing else names it:
//
//     EW_CPU_KERNEL(void, scale_rows_kernel, const ScaleRowsArgs&, std::int64_t begin, std::int64_t end);
//     EW_DEFINE_CPU_KERNEL(scale_rows_kernel, scale_rows);  // scale_rows: a function of an anonymous namespace
//
// and scale_rows_kernel() is the function of the instruction set in use. Each is a constant, so that no code of a wide
// instruction set runs while the library is loaded. EW_DOT_KERNEL declares one whose file is *_dot.cpp, which the build
// compiles for the instruction sets that multiply bytes, too; EW_BF16_KERNEL one whose file is *_bf16.cpp, which the
// build compiles for the one that multiplies bfloat16, too.
#pragma once

#include "cpu/simd/isa.h"

namespace ew {

template <class Function>
Function* variant([[maybe_unused]] Function* avx512, [[maybe_unused]] Function* avx2, Function* portable) {
  switch (isa()) {
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Bf16:
      return avx512;
    case Isa::kAvx2:
    case Isa::kAvx2Vnni:
      return avx2;
    case Isa::kPortable:
      break;
  }
  return portable;
}

// The same for kernels that multiply bytes, of which avx512vnni and avx2vnni have versions of their own.
template <class Function>
Function* dot_variant([[maybe_unused]] Function* avx512vnni, Function* avx512, [[maybe_unused]] Function* avx2vnni,
                      Function* avx2, Function* portable) {
  if (isa() == Isa::kAvx512Vnni || isa() == Isa::kAvx512Bf16) return avx512vnni;
  if (isa() == Isa::kAvx2Vnni) return avx2vnni;
  return variant(avx512, avx2, portable);
}

// The same for kernels that multiply bfloat16.
template <class Function>
Function* bf16_variant(Function* avx512bf16, Function* avx512, Function* avx2, Function* portable) {
  return isa() == Isa::kAvx512Bf16 ? avx512bf16 : variant(avx512, avx2, portable);
}

}  // namespace ew

#define EW_VARIANT(isa, result, name, ...)  \
  namespace isa {                           \
  extern result (*const name)(__VA_ARGS__); \
  }

#ifdef EW_X86
#define EW_CPU_KERNEL(result, name, ...)                                           \
  EW_VARIANT(avx512, result, name, __VA_ARGS__)                                    \
  EW_VARIANT(avx2, result, name, __VA_ARGS__)                                      \
  EW_VARIANT(portable, result, name, __VA_ARGS__)                                  \
  inline auto name() { return variant(avx512::name, avx2::name, portable::name); } \
  static_assert(true)
#define EW_DOT_KERNEL(result, name, ...)                                                            \
  EW_VARIANT(avx512vnni, result, name, __VA_ARGS__)                                                 \
  EW_VARIANT(avx512, result, name, __VA_ARGS__)                                                     \
  EW_VARIANT(avx2vnni, result, name, __VA_ARGS__)                                                   \
  EW_VARIANT(avx2, result, name, __VA_ARGS__)                                                       \
  EW_VARIANT(portable, result, name, __VA_ARGS__)                                                   \
  inline auto name() {                                                                              \
    return dot_variant(avx512vnni::name, avx512::name, avx2vnni::name, avx2::name, portable::name); \
  }                                                                                                 \
  static_assert(true)
#define EW_BF16_KERNEL(result, name, ...)                                                                 \
  EW_VARIANT(avx512bf16, result, name, __VA_ARGS__)                                                       \
  EW_VARIANT(avx512, result, name, __VA_ARGS__)                                                           \
  EW_VARIANT(avx2, result, name, __VA_ARGS__)                                                             \
  EW_VARIANT(portable, result, name, __VA_ARGS__)                                                         \
  inline auto name() { return bf16_variant(avx512bf16::name, avx512::name, avx2::name, portable::name); } \
  static_assert(true)
#else
#define EW_CPU_KERNEL(result, name, ...)          \
  EW_VARIANT(portable, result, name, __VA_ARGS__) \
  inline auto name() { return portable::name; }   \
  static_assert(true)
#define EW_DOT_KERNEL EW_CPU_KERNEL
#define EW_BF16_KERNEL EW_CPU_KERNEL
#endif

#define EW_DEFINE_CPU_KERNEL(name, function) decltype(EW_ISA::name) EW_ISA::name = function
