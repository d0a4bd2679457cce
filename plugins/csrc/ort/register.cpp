// The library's entry for ONNX Runtime, and the declarations a test compares with plugins/ops.py.
#include <mutex>
#include <string>

#include "declaration.h"
#include "host.h"

#define EW_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace ew::ort;

constexpr const char* kDomain = "enginewright";

// One domain for the process: sessions keep pointers into it, so it is never released.
CustomOpDomain* domain(const Api& api) {
  static std::mutex mutex;
  static CustomOpDomain* made = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (made) return made;
  CustomOpDomain* fresh = nullptr;
  check(CreateCustomOpDomain(api)(kDomain, &fresh));
  for (const DeclaredOp* const* op = ops(); *op; ++op) check(CustomOpDomain_Add(api)(fresh, *op));
  return made = fresh;
}

std::string quoted(const char* text) { return "\"" + std::string(text) + "\""; }

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

std::string ports(const Port* port, std::size_t count) {
  std::string json;
  for (std::size_t i = 0; i < count; ++i) {
    json += (i ? ", " : "") + ("{\"name\": " + quoted(port[i].name)) + ", \"type\": " + quoted(name_of(port[i].type)) +
            ", \"optional\": " + (port[i].presence == kOptional ? "true" : "false") +
            ", \"variadic\": " + (port[i].presence == kVariadic ? "true" : "false") + "}";
  }
  return "[" + json + "]";
}

std::string json(const Declaration& op) {
  std::string attributes;
  for (std::size_t i = 0; i < op.attribute_count; ++i)
    attributes += (i ? ", " : "") + ("{\"name\": " + quoted(op.attributes[i].name)) +
                  ", \"type\": " + quoted(op.attributes[i].type) + ", \"default\": " + op.attributes[i].fallback + "}";
  return "{\"name\": " + quoted(op.name) + ", \"version\": " + std::to_string(op.version) +
         ", \"inputs\": " + ports(op.inputs, op.input_count) + ", \"outputs\": " + ports(op.outputs, op.output_count) +
         ", \"attributes\": [" + attributes + "]}";
}

}  // namespace

EW_EXPORT Status* RegisterCustomOps(SessionOptions* options, const ApiBase* base) {
  const Api* api = base->get_api(kApiVersion);
  if (!api) {  // too old for a table of our version; every version has CreateStatus
    const std::string message = std::string("enginewright: got ONNX Runtime ") + base->version() + ", expected 1." +
                                std::to_string(kApiVersion) + " or later";
    const Api* oldest = base->get_api(1);
    return oldest ? CreateStatus(*oldest)(kFail, message.c_str()) : nullptr;
  }
  return guarded(*api, kDomain, [&] { check(AddCustomOpDomain(*api)(options, domain(*api))); });
}

// {"domain": ..., "ops": [...]}: what this library registers.
EW_EXPORT const char* ew_op_declarations() {
  static const std::string all = [] {
    std::string list;
    for (const DeclaredOp* const* op = ops(); *op; ++op) list += (list.empty() ? "" : ", ") + json(*(*op)->declaration);
    return "{\"domain\": " + quoted(kDomain) + ", \"ops\": [" + list + "]}";
  }();
  return all.c_str();
}

// [[index, name], ...]: the OrtApi entries this library calls.
EW_EXPORT const char* ew_ort_entries() {
#define EW_ORT_NAME(index, name, result, arguments) "[" #index ", \"" #name "\"], "
  return "[" EW_ORT_ENTRIES(EW_ORT_NAME) "[-1, \"\"]]";
#undef EW_ORT_NAME
}
