#include "hosts/tensorrt/inputs.h"

#include <algorithm>
#include <string>

#include "hosts/tensorrt/fields.h"

namespace ew::trt {

using ops::fail;

Inputs::Inputs(const ops::Declaration& op, std::int32_t present) : op_(&op), present_(present) {
  if (present == kAllInOrder) return;
  const std::int64_t above = std::int64_t{1} << op.input_count;
  if (present < 0 || present >= above)
    fail(kPresent, std::to_string(present),
         "a mask of the op's " + std::to_string(op.input_count) + " inputs, below " + std::to_string(above));
  for (std::size_t i = 0; i < op.input_count; ++i)
    if (op.inputs[i].presence == ops::kRequired && !has(i))
      fail(kPresent, std::to_string(present),
           "the bit of input " + std::to_string(i) + ", " + op.inputs[i].name + ", which is required");
}

bool Inputs::has(std::size_t place) const { return present_ == kAllInOrder || (present_ >> place & 1) != 0; }

bool Inputs::is_variadic() const { return op_->inputs[op_->input_count - 1].presence == ops::kVariadic; }

std::vector<std::size_t> Inputs::places(std::int32_t count) const {
  const std::size_t wanted = static_cast<std::size_t>(std::max(count, 0));
  std::vector<std::size_t> at;
  std::size_t required = 0;
  for (std::size_t i = 0; i < op_->input_count; ++i) {
    if (op_->inputs[i].presence == ops::kRequired) required = i + 1;
    if (has(i) && op_->inputs[i].presence != ops::kVariadic) at.push_back(i);
  }
  const std::string got = std::to_string(count) + " tensors";
  if (is_variadic() && has(op_->input_count - 1)) {
    if (wanted < at.size()) fail("inputs", got, std::to_string(at.size()) + " or more");
    for (std::size_t place = op_->input_count - 1; at.size() < wanted; ++place) at.push_back(place);
  } else if (present_ != kAllInOrder) {
    if (wanted != at.size())
      fail("inputs", got, std::to_string(at.size()) + ", as present = " + std::to_string(present_) + " says");
  } else if (wanted < required || wanted > at.size()) {
    fail("inputs", got, std::to_string(required) + " to " + std::to_string(at.size()));
  }
  at.resize(wanted);
  return at;
}

std::int32_t Inputs::index_of(std::size_t place) const {
  std::int32_t index = 0;
  for (std::size_t i = 0; i < place; ++i) index += has(i) ? 1 : 0;
  return index;
}

ops::Tensor tensor_of(const nvinfer1::Dims& dims, void* data) {
  ops::Tensor tensor;
  tensor.rank = dims.nbDims;
  tensor.data = data;
  for (int axis = 0; axis < std::min(dims.nbDims, ops::Tensor::kMaxRank); ++axis) tensor.shape[axis] = dims.d[axis];
  return tensor;
}

}  // namespace ew::trt
