#include "hosts/tensorrt/types.h"

#include <algorithm>

#include "ops/tensor.h"

namespace ew::trt {

using nvinfer1::DataType;

DataType data_type(ops::ElementType type) {
  switch (type) {
    case ops::kInt8:
      return DataType::kINT8;
    case ops::kInt32:
      return DataType::kINT32;
    case ops::kInt64:
      return DataType::kINT64;
    case ops::kFloat16:
      return DataType::kHALF;
    case ops::kBfloat16:
      return DataType::kBF16;
    case ops::kFloat:
      break;
  }
  return DataType::kFLOAT;
}

std::string name_of(DataType type) {
  for (ops::ElementType known : {ops::kFloat, ops::kInt8, ops::kInt32, ops::kInt64, ops::kFloat16, ops::kBfloat16})
    if (data_type(known) == type) return ops::name_of(known);
  return "type " + std::to_string(static_cast<int>(type));
}

std::vector<const ops::Port*> ports_of(const ops::Declaration& op, const std::vector<std::size_t>& places) {
  std::vector<const ops::Port*> ports;
  for (std::size_t place : places) ports.push_back(&op.inputs[std::min(place, op.input_count - 1)]);
  for (std::size_t i = 0; i < op.output_count; ++i) ports.push_back(&op.outputs[i]);
  return ports;
}

const ops::Declaration& matching_declaration(const std::vector<const ops::Declaration*>& declarations,
                                             const std::vector<std::size_t>& places, const DataType* input_types) {
  std::vector<const ops::Declaration*> matching = declarations;
  for (std::size_t i = 0; i < places.size(); ++i) {
    std::vector<const ops::Declaration*> kept;
    std::string expected;
    const char* name = "";
    for (const ops::Declaration* op : matching) {
      const ops::Port& port = *ports_of(*op, places)[i];
      name = port.name;
      if (data_type(port.type) == input_types[i]) kept.push_back(op);
      const std::string type = ops::name_of(port.type);
      if (expected != type) expected += (expected.empty() ? "" : " or ") + type;
    }
    if (kept.empty()) ops::fail(name, name_of(input_types[i]), expected);
    matching = kept;
  }
  return *matching.front();
}

}  // namespace ew::trt
