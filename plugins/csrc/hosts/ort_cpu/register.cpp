// The library's entry point for ONNX Runtime, and its declarations as JSON, for tests.
#include <mutex>
#include <string>

#include "hosts/ort_cpu/declaration.h"
#include "hosts/ort_cpu/host.h"

#define EW_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace ew::ort;

// One domain for the process: sessions keep pointers into it, so it is never released.
CustomOpDomain* domain(const Api& api) {
  static std::mutex mutex;
  static CustomOpDomain* made = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (made) return made;
  CustomOpDomain* fresh = nullptr;
  check(CreateCustomOpDomain(api)(kDomain, &fresh));
  for (const DeclaredOp* op : ops()) check(CustomOpDomain_Add(api)(fresh, op));
  return made = fresh;
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
    for (const DeclaredOp* op : ops()) list += (list.empty() ? "" : ", ") + json(*op->declaration);
    return json_of_library(list);
  }();
  return all.c_str();
}

// [[index, name], ...]: the OrtApi entries this library calls.
EW_EXPORT const char* ew_ort_entries() {
#define EW_ORT_NAME(index, name, result, arguments) "[" #index ", \"" #name "\"], "
  return "[" EW_ORT_ENTRIES(EW_ORT_NAME) "[-1, \"\"]]";
#undef EW_ORT_NAME
}
