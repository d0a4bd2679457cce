// Element types and formats: which a declaration has, and which TensorRT offers.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "ops/declaration.h"

namespace ew::trt {

nvinfer1::DataType data_type(ops::ElementType type);

// As plugins/ops.py calls the types that it has; others by TensorRT's number.
std::string name_of(nvinfer1::DataType type);

// The ports of a node's inputs and then outputs, as one of its op's declarations has them.
std::vector<const ops::Port*> ports_of(const ops::Declaration& op, const std::vector<std::size_t>& places);

// The one that has these types for a node's inputs. Throws: an input has a type that none has beside those before it.
const ops::Declaration& matching_declaration(const std::vector<const ops::Declaration*>& declarations,
                                             const std::vector<std::size_t>& places,
                                             const nvinfer1::DataType* input_types);

}  // namespace ew::trt
