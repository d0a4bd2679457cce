// The exports of the library: TensorRT's two entry points, and the C functions that Python's loader calls.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "abi/cuda_calls.h"
#include "hosts/tensorrt/creator.h"
#include "hosts/tensorrt/operation.h"
#include "hosts/tensorrt/report.h"

namespace ew::trt {

namespace {

// Made by the first registration: files are initialised in no order.
std::vector<Op>& registered() {
  static std::vector<Op> all;
  return all;
}

// Kernels of another version may take other structures.
void expect_kernels() {
  if (ew_cuda_abi() != EW_CUDA_ABI || std::strcmp(ew_cuda_version(), EW_VERSION) != 0)
    ops::fail("libenginewright_cuda",
              std::string("version ") + ew_cuda_version() + ", ABI " + std::to_string(ew_cuda_abi()),
              std::string("version ") + EW_VERSION + ", ABI " + std::to_string(EW_CUDA_ABI));
}

// For the life of the process: registries keep pointers to them, and end after this library's statics.
const std::vector<nvinfer1::IPluginCreatorInterface*>& creators() {
  static const auto* const all = [] {
    auto made = std::make_unique<std::vector<nvinfer1::IPluginCreatorInterface*>>();
    for (const Op& op : all_ops()) made->push_back(new Creator(op));
    return made.release();
  }();
  return *all;
}

}  // namespace

Registration::Registration(Op op) { registered().push_back(std::move(op)); }

const std::vector<Op>& all_ops() {
  static const std::vector<Op> sorted = [] {
    std::vector<Op> all = registered();
    std::sort(all.begin(), all.end(),
              [](const Op& a, const Op& b) { return std::strcmp(a.declaration().name, b.declaration().name) < 0; });
    return all;
  }();
  return sorted;
}

}  // namespace ew::trt

using namespace ew::trt;

#define EW_TRT_EXPORT extern "C" __attribute__((visibility("default")))

EW_TRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  count = 0;
  return guarded<nvinfer1::IPluginCreatorInterface* const*>(ew::ops::kDomain, nullptr, nullptr, [&count] {
    expect_kernels();
    count = static_cast<std::int32_t>(creators().size());
    return creators().data();
  });
}

EW_TRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { set_logger_finder(finder); }

// The version of the package that the library was built from.
EW_TRT_EXPORT const char* ew_trt_version() { return EW_VERSION; }

// {"domain": ..., "ops": [...]}: what the creators make; an op once for each type of its activations.
EW_TRT_EXPORT const char* ew_trt_ops() {
  static const std::string all = [] {
    std::string list;
    for (const Op& op : all_ops())
      for (const ew::ops::Declaration* declaration : op.declarations)
        list += (list.empty() ? "" : ", ") + ew::ops::json(*declaration);
    return ew::ops::json_of_library(list);
  }();
  return all.c_str();
}

// The last message of this thread: TensorRT keeps to itself why a creator made nothing.
EW_TRT_EXPORT const char* ew_trt_error() { return last_error(); }
