// An op as the library declares it to ONNX Runtime; a test compares it with plugins/ops.py.
#pragma once

#include <cstddef>

#include "ort_abi.h"

namespace ew::ort {

struct Port {
  const char* name;
  ElementType type;
  Presence presence = kRequired;
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

// An OrtCustomOp that carries its declaration; the callbacks get the CustomOp back and find it behind.
struct DeclaredOp : CustomOp {
  const Declaration* declaration;
};

// Fills in every callback that follows from the declaration.
DeclaredOp declare(const Declaration& declaration);

// The ops of this library.
const DeclaredOp& paged_attention_op();

}  // namespace ew::ort
