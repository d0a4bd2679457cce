#include "hosts/ort_cpu/declaration.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace ew::ort {
namespace {

const Declaration& of(const CustomOp* op) { return *static_cast<const DeclaredOp*>(op)->declaration; }

// Made by the first registration: files are initialised in no order.
std::vector<const DeclaredOp*>& registered() {
  static std::vector<const DeclaredOp*> all;
  return all;
}

}  // namespace

Registration::Registration(const DeclaredOp& op) : op_(op) { registered().push_back(&op_); }

std::vector<const DeclaredOp*> ops() {
  std::vector<const DeclaredOp*> sorted = registered();
  std::sort(sorted.begin(), sorted.end(), [](const DeclaredOp* a, const DeclaredOp* b) {
    const int order = std::strcmp(a->declaration->name, b->declaration->name);
    return order != 0 ? order < 0 : a->declaration->inputs[0].type < b->declaration->inputs[0].type;
  });
  return sorted;
}

DeclaredOp declare(const Declaration& declaration) {
  DeclaredOp op{};
  op.declaration = &declaration;
  op.version = kApiVersion;
  op.name = [](const CustomOp* self) { return of(self).name; };
  op.execution_provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
  op.input_type = [](const CustomOp* self, std::size_t i) { return of(self).inputs[i].type; };
  op.input_count = [](const CustomOp* self) { return of(self).input_count; };
  op.output_type = [](const CustomOp* self, std::size_t i) { return of(self).outputs[i].type; };
  op.output_count = [](const CustomOp* self) { return of(self).output_count; };
  op.input_presence = [](const CustomOp* self, std::size_t i) { return of(self).inputs[i].presence; };
  op.output_presence = [](const CustomOp* self, std::size_t i) { return of(self).outputs[i].presence; };
  op.input_memory = [](const CustomOp*, std::size_t) { return kDefaultMemory; };
  op.variadic_input_minimum = op.variadic_output_minimum = [](const CustomOp*) { return 0; };
  op.variadic_input_homogeneous = op.variadic_output_homogeneous = [](const CustomOp*) { return 1; };  // of one type
  op.start_version = [](const CustomOp* self) { return of(self).version; };
  op.end_version = [](const CustomOp*) { return std::numeric_limits<int>::max(); };
  return op;
}

}  // namespace ew::ort
