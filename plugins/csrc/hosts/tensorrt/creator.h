// Creates the plugins of one op, from a node of a graph or from an engine.
#pragma once

#include <NvInferRuntime.h>

#include <string>
#include <vector>

#include "hosts/tensorrt/operation.h"

namespace ew::trt {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const Op& op);

  // Null, and a message, where the fields are not those of the op.
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &names_; }
  const char* getPluginName() const noexcept override { return op_.declaration().name; }
  const char* getPluginVersion() const noexcept override { return version_.c_str(); }
  const char* getPluginNamespace() const noexcept override { return ops::kDomain; }

 private:
  const Op& op_;
  std::string version_;
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection names_{};
};

}  // namespace ew::trt
