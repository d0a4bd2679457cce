#include "ops/declaration.h"

namespace ew::ops {
namespace {

std::string quoted(const char* text) { return "\"" + std::string(text) + "\""; }

std::string ports(const Declaration& op, const Port* port, std::size_t count) {
  std::string json;
  for (std::size_t i = 0; i < count; ++i) {
    json += (i ? ", " : "") + ("{\"name\": " + quoted(port[i].name)) + ", \"type\": " + quoted(name_of(port[i].type)) +
            ", \"optional\": " + (port[i].presence == kOptional ? "true" : "false") +
            ", \"variadic\": " + (port[i].presence == kVariadic ? "true" : "false") +
            ", \"alias\": " + (port[i].alias == kNoAlias ? "null" : quoted(op.inputs[port[i].alias].name)) + "}";
  }
  return "[" + json + "]";
}

}  // namespace

const char* name_of(ElementType type) {
  switch (type) {
    case kFloat:
      return "float32";
    case kInt8:
      return "int8";
    case kInt32:
      return "int32";
    case kInt64:
      return "int64";
    case kFloat16:
      return "float16";
    case kBfloat16:
      return "bfloat16";
  }
  return "";
}

std::string json(const Declaration& op) {
  std::string attributes;
  for (std::size_t i = 0; i < op.attribute_count; ++i)
    attributes += (i ? ", " : "") + ("{\"name\": " + quoted(op.attributes[i].name)) +
                  ", \"type\": " + quoted(op.attributes[i].type) + ", \"default\": " + op.attributes[i].fallback + "}";
  return "{\"name\": " + quoted(op.name) + ", \"version\": " + std::to_string(op.version) +
         ", \"inputs\": " + ports(op, op.inputs, op.input_count) +
         ", \"outputs\": " + ports(op, op.outputs, op.output_count) + ", \"attributes\": [" + attributes + "]}";
}

std::string json_of_library(const std::string& declarations) {
  return "{\"domain\": " + quoted(kDomain) + ", \"ops\": [" + declarations + "]}";
}

}  // namespace ew::ops
