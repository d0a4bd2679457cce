// The one plugin class of all ops, with TensorRT's three interfaces: core, build and runtime.
#pragma once

#include <NvInferRuntime.h>

#include <memory>
#include <string>
#include <vector>

#include "hosts/tensorrt/fields.h"
#include "hosts/tensorrt/inputs.h"
#include "hosts/tensorrt/operation.h"
#include "hosts/tensorrt/report.h"

namespace ew::trt {

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuildV2,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  // Throws what is wrong with the fields.
  Plugin(const Op& op, const Fields& fields);

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return name(); }
  const char* getPluginVersion() const noexcept override { return version_.c_str(); }
  const char* getPluginNamespace() const noexcept override { return ops::kDomain; }

  std::int32_t getNbOutputs() const noexcept override;
  std::int32_t getOutputDataTypes(nvinfer1::DataType* output_types, std::int32_t output_count,
                                  const nvinfer1::DataType* input_types,
                                  std::int32_t input_count) const noexcept override;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                               const nvinfer1::DimsExprs* shape_inputs, std::int32_t shape_input_count,
                               nvinfer1::DimsExprs* outputs, std::int32_t output_count,
                               nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 std::int32_t input_count, std::int32_t output_count) noexcept override;
  // One: a second would be timed, on tables of random numbers.
  std::int32_t getFormatCombinationLimit() noexcept override { return 1; }
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) noexcept override;
  std::size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs,
                               std::int32_t output_count) const noexcept override;
  std::int32_t getAliasedInput(std::int32_t output) noexcept override;
  const char* getTimingCacheID() noexcept override { return timing_cache_id_.c_str(); }
  const char* getMetadataString() noexcept override { return description_.c_str(); }

  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                             const nvinfer1::PluginTensorDesc* outputs, std::int32_t output_count) noexcept override;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs, const nvinfer1::PluginTensorDesc* output_descs,
                       const void* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  const char* name() const { return op_->declaration().name; }
  std::unique_ptr<Plugin> copy() const;
  void expect_outputs(std::int32_t count) const;
  void expect_plan(const Tensors& in, nvinfer1::DataType type) const;
  void expect_in_place(const void* const* inputs, void* const* outputs) const;
  void expect_device() const;

  // 0, or 1 and a message.
  template <class Body>
  std::int32_t answer(Body body) const noexcept {
    return guarded(name(), recorder_, std::int32_t{1}, [&] {
      body();
      return std::int32_t{0};
    });
  }

  const Op* op_;
  Fields fields_;
  Inputs inputs_;
  std::unique_ptr<const Operation> operation_;
  std::string version_, description_, timing_cache_id_;
  nvinfer1::IErrorRecorder* recorder_ = nullptr;  // of the execution context; set by attachToContext
  std::int32_t input_count_ = -1;                 // of the node; set by onShapeChange, for enqueue is not told
  std::vector<nvinfer1::PluginField> serialized_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace ew::trt
