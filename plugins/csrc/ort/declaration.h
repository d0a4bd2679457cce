// An op as the library declares it to ONNX Runtime; a test compares it with plugins/ops.py.
#pragma once

#include <cstddef>

#include "host.h"
#include "ort_abi.h"

namespace ew::ort {

struct Port {
  const char* name;
  ElementType type;
  Presence presence = kRequired;
};

struct AttributeDeclaration {
  const char* name;
  const char* type;      // "int" or "float"
  const char* fallback;  // as JSON; "null": required
};

struct Declaration {
  const char* name;
  int version;
  const Port* inputs;
  std::size_t input_count;
  const Port* outputs;
  std::size_t output_count;
  const AttributeDeclaration* attributes;
  std::size_t attribute_count;
};

// An OrtCustomOp that carries its declaration; the callbacks get the CustomOp back and find it behind.
struct DeclaredOp : CustomOp {
  const Declaration* declaration;
};

// Fills in every callback that follows from the declaration.
DeclaredOp declare(const Declaration& declaration);

// The same with a kernel: a struct with `static constexpr const Declaration& declaration`, `const Api& api`, a
// constructor (api, info) and compute(context) const. What they throw becomes a status.
template <class Kernel>
DeclaredOp declare(const Declaration& declaration) {
  DeclaredOp op = declare(declaration);
  op.create_kernel_v2 = [](const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) -> Status* {
    return guarded(*api, Kernel::declaration.name, [&] { *kernel = new Kernel(*api, info); });
  };
  op.compute_v2 = [](void* self, KernelContext* context) -> Status* {
    const Kernel& kernel = *static_cast<const Kernel*>(self);
    return guarded(kernel.api, Kernel::declaration.name, [&] { kernel.compute(context); });
  };
  op.destroy_kernel = [](void* self) { delete static_cast<Kernel*>(self); };
  return op;
}

// The ops of the library that this is compiled into, ending with null.
const DeclaredOp* const* ops();

}  // namespace ew::ort
