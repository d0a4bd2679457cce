// An op as the library declares it to ONNX Runtime.
#pragma once

#include <vector>

#include "hosts/ort_cpu/host.h"
#include "hosts/ort_cpu/ort_abi.h"
#include "ops/declaration.h"

namespace ew::ort {

// An OrtCustomOp that carries its declaration; the callbacks get the CustomOp back and find the declaration after it.
struct DeclaredOp : CustomOp {
  const Declaration* declaration;
};

// Fills in every callback that follows from the declaration.
DeclaredOp declare(const Declaration& declaration);

// The part that the kernels of all ops have in common: the host and the attributes of the node, read once.
template <class Attributes>
struct NodeKernel {
  const Api& api;
  Attributes attributes;

  NodeKernel(const Api& host, const KernelInfo* info) : api(host), attributes(NodeAttributes(host, info)) {}
};

// An input whose memory the host may give to an output, because the kernel reads no element after it wrote it.
struct InPlace {
  int input, output;
};

// Tells the host of Kernel::in_place; without one it does nothing.
template <class Kernel>
void declare_in_place(DeclaredOp&, long) {}
template <class Kernel>
auto declare_in_place(DeclaredOp& op, int) -> decltype(Kernel::in_place, void()) {
  op.may_inplace = [](int** inputs, int** outputs) -> std::size_t {
    static int input = Kernel::in_place.input, output = Kernel::in_place.output;
    *inputs = &input;
    *outputs = &output;
    return 1;
  };
  op.release_may_inplace = [](int*, int*) {};  // they live as long as the library
}

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
  declare_in_place<Kernel>(op, 0);
  return op;
}

// The ops of the library that this is compiled into, in alphabetical order; of one name in the order of their types.
std::vector<const DeclaredOp*> ops();

// Adds an op to them when the library is loaded.
class Registration {
 public:
  explicit Registration(const DeclaredOp& op);
  Registration(const Registration&) = delete;

 private:
  DeclaredOp op_;
};

// Registers the op of an adapter's file. No list names the file: all are linked into one shared library.
#define EW_REGISTER_OP(Kernel) static const ::ew::ort::Registration kRegistered(declare<Kernel>(Kernel::declaration))

}  // namespace ew::ort
