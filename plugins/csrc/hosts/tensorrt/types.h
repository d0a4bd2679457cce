// Translates the element types and formats of declarations into TensorRT's.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "ops/declaration.h"

namespace ew::trt {

nvinfer1::DataType data_type(ops::ElementType type);

// The name in plugins/ops of a type that it has; TensorRT's number of any other.
std::string name_of(nvinfer1::DataType type);

// The ports of a node's inputs and then outputs, as one of its op's declarations has them.
std::vector<const ops::Port*> ports_of(const ops::Declaration& op, const std::vector<std::size_t>& places);

// The declaration that has these types for a node's inputs. Throws: no declaration has an input's type together with
// those of the inputs before it.
const ops::Declaration& matching_declaration(const std::vector<const ops::Declaration*>& declarations,
                                             const std::vector<std::size_t>& places,
                                             const nvinfer1::DataType* input_types);

}  // namespace ew::trt
