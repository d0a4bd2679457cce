// The choice of the instruction set that the kernels use.
#pragma once

namespace ew {

// The instruction sets that kernels are compiled for. x86 alone has more than the first. Vnni: with the instructions
// that multiply bytes and add four products at once. Bf16: with those, and with the ones that add two products of
// bfloat16.
enum class Isa { kPortable, kAvx2, kAvx2Vnni, kAvx512, kAvx512Vnni, kAvx512Bf16 };

// The one in use: the best that this CPU and operating system support, unless set_isa chose another.
Isa isa();

// Its name: portable, avx2, avx2vnni, avx512, avx512vnni or avx512bf16.
const char* isa_name();

// Use the instruction set of that name; "auto": the best. False if it cannot run here.
bool set_isa(const char* name);

}  // namespace ew
