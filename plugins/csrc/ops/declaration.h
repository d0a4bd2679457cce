// The form of an op's declaration, as a library gives it to its host. The declarations themselves are generated
// (generated/declarations); every host's adapters share them and the checks of this folder.
#pragma once

#include <cstddef>
#include <string>

namespace ew::ops {

constexpr const char* kDomain = "enginewright";

// ONNX's numbers.
enum ElementType : int { kFloat = 1, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10, kBfloat16 = 16 };
enum Presence : int { kRequired = 0, kOptional = 1, kVariadic = 2 };

constexpr int kNoAlias = -1;

struct Port {
  const char* name;
  ElementType type;
  Presence presence = kRequired;
  int alias = kNoAlias;  // of an output: the input whose buffer it updates in place
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

// The name that plugins/ops has for it.
const char* name_of(ElementType type);

// {"name": ..., "version": ..., "inputs": [...], "outputs": [...], "attributes": [...]}
std::string json(const Declaration& op);

// {"domain": ..., "ops": [...]} of declarations as JSON, separated by commas.
std::string json_of_library(const std::string& declarations);

}  // namespace ew::ops
