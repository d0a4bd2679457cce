// TensorRT as far as a plugin sees it, for tests: what it is handed, and the order in which it is called.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

extern "C" {
nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count);
void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
const char* ew_trt_error();
const char* ew_trt_ops();
const char* ew_trt_version();
}

namespace host {

using nvinfer1::DataType;

// A constant of a node: an int or a float.
struct Field {
  const char* name;
  bool is_float;
  std::int32_t integer;
  float number;
};
inline Field field(const char* name, int value) { return {name, false, value, 0.0f}; }
inline Field field(const char* name, float value) { return {name, true, 0, value}; }

struct Tensor {
  DataType type;
  std::vector<std::int64_t> dims;
  void* data = nullptr;
};

nvinfer1::IPluginCreatorV3One* find_creator(const std::string& op);

// The plugin as a network has it, or null.
std::unique_ptr<nvinfer1::IPluginV3> create(const std::string& op, const std::vector<Field>& fields);
// Again from the fields that it serialises, as an engine does.
std::unique_ptr<nvinfer1::IPluginV3> deserialized(const std::string& op, nvinfer1::IPluginV3& plugin);

nvinfer1::IPluginV3OneCore& core(nvinfer1::IPluginV3& plugin);
nvinfer1::IPluginV3OneBuildV2& build(nvinfer1::IPluginV3& plugin);
nvinfer1::IPluginV3OneRuntime& runtime(nvinfer1::IPluginV3& plugin);

// "name=value ..." of what is serialised, floats exactly.
std::string serialized_text(nvinfer1::IPluginV3& plugin);

// Keeps messages.
class Recorder final : public nvinfer1::IErrorRecorder {
 public:
  std::int32_t getNbErrors() const noexcept override { return static_cast<std::int32_t>(messages.size()); }
  nvinfer1::ErrorCode getErrorCode(std::int32_t) const noexcept override;
  ErrorDesc getErrorDesc(std::int32_t index) const noexcept override;
  bool hasOverflowed() const noexcept override { return false; }
  void clear() noexcept override { messages.clear(); }
  bool reportError(nvinfer1::ErrorCode code, ErrorDesc message) noexcept override;
  RefCount incRefCount() noexcept override { return ++references; }
  RefCount decRefCount() noexcept override { return --references; }

  std::vector<std::string> messages;
  RefCount references = 0;
};

class Context final : public nvinfer1::IPluginResourceContext {
 public:
  explicit Context(Recorder* recorder) : recorder_(recorder) {}
  nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return recorder_; }

 private:
  Recorder* recorder_;
};

// Keeps what plugins log, while it lives.
class Logger final : public nvinfer1::ILogger, public nvinfer1::ILoggerFinder {
 public:
  Logger() { setLoggerFinder(this); }
  ~Logger() override { setLoggerFinder(nullptr); }
  nvinfer1::ILogger* findLogger() override { return this; }
  void log(Severity severity, const char* message) noexcept override;
  std::vector<std::string> messages;
};

nvinfer1::Dims dims_of(const std::vector<std::int64_t>& sizes);
nvinfer1::PluginTensorDesc desc_of(const Tensor& tensor);
std::vector<nvinfer1::PluginTensorDesc> descs_of(const std::vector<Tensor>& tensors);
// The inputs, then the outputs: of a profile from `least` to `most`.
std::vector<nvinfer1::DynamicPluginTensorDesc> profile_of(const std::vector<Tensor>& least,
                                                          const std::vector<Tensor>& most);

// The outputs that a plugin declares for such inputs: empty, and a message, where it refuses them.
std::vector<Tensor> outputs_of(nvinfer1::IPluginV3& plugin, const std::vector<Tensor>& inputs);
// The position of the first tensor whose type or format is refused, or -1.
int first_refused(nvinfer1::IPluginV3& plugin, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs);

int configure(nvinfer1::IPluginV3& plugin, const std::vector<Tensor>& least, const std::vector<Tensor>& most);
std::size_t workspace(nvinfer1::IPluginV3& plugin, const std::vector<Tensor>& most);
int enqueue(nvinfer1::IPluginV3& plugin, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs,
            void* workspace, void* stream = nullptr);

}  // namespace host
