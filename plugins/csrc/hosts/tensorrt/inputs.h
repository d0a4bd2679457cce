// Maps the inputs that a node lists to the inputs that its op declares.
//
// A network of TensorRT has no absent inputs: a node lists only those that are given, one after another, and `present`
// says which ones they are.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <vector>

#include "ops/declaration.h"
#include "ops/tensor.h"

namespace ew::trt {

// Tensors by their place among the declared inputs; those of a variadic input follow one another, from its place on.
using Tensors = std::vector<ops::Tensor>;

class Inputs {
 public:
  // Throws: the mask lacks a required input, or names more than are declared.
  Inputs(const ops::Declaration& op, std::int32_t present);

  // Whether the node lists the input of a place; without a mask it may list all.
  bool has(std::size_t place) const;

  // The place of each of a node's `count` inputs. Throws where they are not as many as they should be.
  std::vector<std::size_t> places(std::int32_t count) const;

  // The node's index of the input of a place that is declared before any optional one.
  std::int32_t index_of(std::size_t place) const;

  // The node's inputs of these sizes; addresses(i) is where input i lies.
  template <class Sizes, class Addresses>
  Tensors tensors(std::int32_t count, Sizes sizes, Addresses addresses) const;

 private:
  bool is_variadic() const;

  const ops::Declaration* op_;
  std::int32_t present_;
};

// A tensor of TensorRT's sizes.
ops::Tensor tensor_of(const nvinfer1::Dims& dims, void* data);

template <class Sizes, class Addresses>
Tensors Inputs::tensors(std::int32_t count, Sizes sizes, Addresses addresses) const {
  const std::vector<std::size_t> at = places(count);
  Tensors all(is_variadic() ? op_->input_count - 1 : op_->input_count);
  for (std::int32_t i = 0; i < count; ++i) {
    const std::size_t place = at[static_cast<std::size_t>(i)];
    if (place >= all.size()) all.resize(place + 1);
    all[place] = tensor_of(sizes(i), addresses(i));
  }
  return all;
}

}  // namespace ew::trt
