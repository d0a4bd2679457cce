#include "hosts/tensorrt/creator.h"

#include "hosts/tensorrt/plugin.h"

namespace ew::trt {

Creator::Creator(const Op& op)
    : op_(op), version_(std::to_string(op.declaration().version)), fields_(field_names(op.declaration())) {
  names_.nbFields = static_cast<std::int32_t>(fields_.size());
  names_.fields = fields_.data();
}

nvinfer1::IPluginV3* Creator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                           nvinfer1::TensorRTPhase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(getPluginName(), nullptr, nullptr,
                                       [&] { return new Plugin(op_, Fields(op_.declaration(), fields)); });
}

}  // namespace ew::trt
