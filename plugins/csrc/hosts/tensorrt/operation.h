// The interface between an op's adapter and the plugin that all ops have in common.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "hosts/tensorrt/fields.h"
#include "hosts/tensorrt/inputs.h"
#include "ops/declaration.h"
#include "ops/refusal.h"

namespace ew::trt {

// A size of an output: that of an input's axis times a number, or a constant.
struct Extent {
  int input;  // negative: a constant
  int axis;
  std::int64_t size;  // the constant, or the number
};
inline Extent axis_of(int input, int axis, std::int64_t times = 1) { return {input, axis, times}; }
inline Extent constant(std::int64_t size) { return {-1, 0, size}; }
using Shape = std::vector<Extent>;

// An axis whose size a profile must not vary: kernels are chosen by it, or the bound of the workspace holds for one.
struct Axis {
  int input, axis;
};

// A call; or the plan of one, with addresses that are not read.
struct Call {
  const Tensors& in;
  void* const* out;
  std::int32_t type;  // EW_HALF or EW_BFLOAT16
};

// An op with the attributes of a node. All functions throw "name: got X, expected Y".
class Operation {
 public:
  virtual ~Operation() = default;
  virtual std::vector<Shape> outputs() const = 0;
  virtual std::vector<Axis> fixed_axes() const { return {}; }
  virtual void expect_shapes(const Tensors& in) const = 0;
  // Bytes that this call needs; throws where the kernels refuse it.
  virtual std::int64_t workspace(const Call& call) const = 0;
  // Bytes that suffice for it and for every call none of whose sizes is larger.
  virtual std::int64_t workspace_bound(const Call& largest) const { return workspace(largest); }
  virtual void start(const Call& call, void* workspace, void* stream) const = 0;
};

// An op as creators know it: its declarations, one for each type of activations, and how its operation is made.
struct Op {
  std::vector<const ops::Declaration*> declarations;
  std::unique_ptr<const Operation> (*make)(const Fields& fields);

  const ops::Declaration& declaration() const { return *declarations.front(); }
};

// The ops of the library, in alphabetical order.
const std::vector<Op>& all_ops();

// Adds an op to them when the library is loaded.
struct Registration {
  explicit Registration(Op op);
};

template <class Made>
std::unique_ptr<const Operation> make(const Fields& fields) {
  return std::make_unique<Made>(fields);
}

// Registers the op of an adapter's file: its class, and pointers to its declarations, one for each type of activations.
// No list names the file: all are linked into one shared library.
#define EW_REGISTER_OP(Made, ...) static const ::ew::trt::Registration kRegistered({{__VA_ARGS__}, make<Made>})

// Bytes that a call of the kernels' library needs.
template <class Arguments>
std::int64_t workspace_of(const Arguments& arguments) {
  const std::int64_t bytes = ew_cuda_workspace(arguments);
  if (bytes < 0) ops::fail_as_library();
  return bytes;
}

// The operation of an op whose kernels take one structure, which Made::arguments(call) fills in.
template <class Made>
class KernelOperation : public Operation {
 public:
  std::int64_t workspace(const Call& call) const final { return workspace_of(made().arguments(call)); }
  // The memory is as large as the plan of the largest call said; TensorRT does not repeat the size.
  void start(const Call& call, void* workspace, void* stream) const final {
    const auto arguments = made().arguments(call);
    if (ew_cuda_run(arguments, workspace, workspace_of(arguments), stream) < 0) ops::fail_as_library();
  }

 private:
  const Made& made() const { return static_cast<const Made&>(*this); }
};

}  // namespace ew::trt
