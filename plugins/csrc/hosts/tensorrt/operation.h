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

// A size of an output: that of an input's axis, or a constant.
struct Extent {
  int input;  // negative: a constant
  int axis;
  std::int64_t size;
};
inline Extent axis_of(int input, int axis) { return {input, axis, 0}; }
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

const std::vector<Op>& all_ops();

template <class Made>
std::unique_ptr<const Operation> make(const Fields& fields) {
  return std::make_unique<Made>(fields);
}

template <class Arguments>
std::int64_t workspace_of(const Arguments& arguments, std::int64_t (*workspace)(const Arguments*)) {
  const std::int64_t bytes = workspace(&arguments);
  if (bytes < 0) ops::fail_as_library();
  return bytes;
}

// The memory is as large as the plan of the largest call said; TensorRT does not repeat the size.
template <class Arguments>
void start_with(const Arguments& arguments, std::int64_t (*workspace)(const Arguments*),
                int (*run)(const Arguments*, void*, std::int64_t, void*), void* memory, void* stream) {
  const std::int64_t bytes = workspace_of(arguments, workspace);
  if (run(&arguments, memory, bytes, stream) < 0) ops::fail_as_library();
}

}  // namespace ew::trt
