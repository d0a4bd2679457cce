#include "hosts/tensorrt/plugin.h"

#include "abi/cuda_calls.h"
#include "hosts/tensorrt/types.h"
#include "ops/tensor.h"

namespace ew::trt {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;
using ops::fail;

namespace {

// Kernels are planned with it in every place: a plan looks whether an address is null, and how it is aligned.
void* const kPlanned = reinterpret_cast<void*>(std::uintptr_t{256});
constexpr std::size_t kMostOutputs = 4;
void* const kPlannedOutputs[kMostOutputs] = {kPlanned, kPlanned, kPlanned, kPlanned};

std::int32_t call_type(DataType type) { return type == DataType::kBF16 ? EW_BFLOAT16 : EW_HALF; }

// Tensors of a size that a profile has: DynamicPluginTensorDesc::min, opt or max.
Tensors sized(const Inputs& inputs, const DynamicPluginTensorDesc* descs, std::int32_t count,
              nvinfer1::Dims DynamicPluginTensorDesc::* size) {
  return inputs.tensors(count, [&](std::int32_t i) { return descs[i].*size; }, [](std::int32_t) { return kPlanned; });
}

void expect_fixed(const ops::Declaration& op, const Operation& operation, const Tensors& least, const Tensors& most) {
  for (const Axis& axis : operation.fixed_axes()) {
    const std::size_t place = static_cast<std::size_t>(axis.input);
    const std::int64_t from = least[place].shape[axis.axis], to = most[place].shape[axis.axis];
    if (from != to)
      fail(op.inputs[place].name,
           std::to_string(from) + " to " + std::to_string(to) + " along axis " + std::to_string(axis.axis),
           "one size in the whole profile");
  }
}

}  // namespace

Plugin::Plugin(const Op& op, const Fields& fields)
    : op_(&op),
      fields_(fields),
      inputs_(op.declaration(), fields.present()),
      operation_(op.make(fields)),
      version_(std::to_string(op.declaration().version)),
      description_(fields.text()),
      timing_cache_id_(std::string(op.declaration().name) + " " + version_ + " of enginewright " EW_VERSION ": " +
                       description_) {}

nvinfer1::IPluginCapability* Plugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

std::unique_ptr<Plugin> Plugin::copy() const {
  auto copied = std::make_unique<Plugin>(*op_, fields_);
  copied->recorder_ = recorder_;
  copied->input_count_ = input_count_;
  return copied;
}

nvinfer1::IPluginV3* Plugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(name(), recorder_, nullptr, [this] { return copy().release(); });
}

nvinfer1::IPluginV3* Plugin::attachToContext(nvinfer1::IPluginResourceContext* context) noexcept {
  return guarded<nvinfer1::IPluginV3*>(name(), recorder_, nullptr, [this, context] {
    std::unique_ptr<Plugin> attached = copy();
    attached->recorder_ = context != nullptr ? context->getErrorRecorder() : nullptr;
    return attached.release();
  });
}

const nvinfer1::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept {
  return guarded<const nvinfer1::PluginFieldCollection*>(name(), recorder_, nullptr, [this] {
    if (fields_.multiprocessors() == 0) {
      const int count = ew_cuda_multiprocessors();
      if (count < 0) fail(kMultiprocessors, std::string("none: ") + ew_cuda_error(), "those of a GPU");
      fields_.set_multiprocessors(count);
    }
    serialized_ = fields_.all();
    collection_.nbFields = static_cast<std::int32_t>(serialized_.size());
    collection_.fields = serialized_.data();
    return &collection_;
  });
}

std::int32_t Plugin::getNbOutputs() const noexcept {
  // an output that updates an absent input is absent, too; such outputs come last
  const ops::Declaration& op = op_->declaration();
  std::size_t count = op.output_count;
  while (count > 0 && op.outputs[count - 1].presence == ops::kOptional &&
         !inputs_.has(static_cast<std::size_t>(op.outputs[count - 1].alias)))
    --count;
  return static_cast<std::int32_t>(count);
}

void Plugin::expect_outputs(std::int32_t count) const {
  if (count != getNbOutputs()) fail("outputs", std::to_string(count), std::to_string(getNbOutputs()));
}

std::int32_t Plugin::getOutputDataTypes(DataType* output_types, std::int32_t output_count, const DataType* input_types,
                                        std::int32_t input_count) const noexcept {
  return answer([&] {
    expect_outputs(output_count);
    const ops::Declaration& op = matching_declaration(op_->declarations, inputs_.places(input_count), input_types);
    for (std::int32_t i = 0; i < output_count; ++i) output_types[i] = data_type(op.outputs[i].type);
  });
}

std::int32_t Plugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                                     const nvinfer1::DimsExprs*, std::int32_t shape_input_count,
                                     nvinfer1::DimsExprs* outputs, std::int32_t output_count,
                                     nvinfer1::IExprBuilder& builder) noexcept {
  return answer([&] {
    expect_outputs(output_count);
    if (shape_input_count != 0) fail("shape inputs", std::to_string(shape_input_count), "none");
    inputs_.places(input_count);  // throws where they are too few
    const std::vector<Shape> shapes = operation_->outputs();
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      outputs[i].nbDims = 0;
      for (const Extent& extent : shapes[i]) {
        const nvinfer1::IDimensionExpr*& size = outputs[i].d[outputs[i].nbDims++];
        if (extent.input < 0) {
          size = builder.constant(extent.size);
          continue;
        }
        // outputs have sizes of required inputs, and those that update an optional one have its sizes
        const std::int32_t index = inputs_.index_of(static_cast<std::size_t>(extent.input));
        if (index >= input_count)
          fail(op_->declaration().inputs[extent.input].name, "nothing", "a tensor, or a mask `present` without it");
        const nvinfer1::DimsExprs& input = inputs[index];
        if (extent.axis >= input.nbDims)
          fail(op_->declaration().inputs[extent.input].name, std::to_string(input.nbDims) + " axes",
               std::to_string(extent.axis + 1) + " or more");
        size = input.d[extent.axis];
        if (extent.size != 1)
          size = builder.operation(nvinfer1::DimensionOperation::kPROD, *size, *builder.constant(extent.size));
      }
    }
  });
}

bool Plugin::supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
                                       std::int32_t input_count, std::int32_t output_count) noexcept {
  return guarded(name(), recorder_, false, [&] {
    expect_outputs(output_count);
    const std::vector<std::size_t> places = inputs_.places(input_count);
    for (std::int32_t i = 0; i <= position; ++i)
      if (tensors[i].desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
    for (const ops::Declaration* op : op_->declarations) {
      const std::vector<const ops::Port*> ports = ports_of(*op, places);
      std::int32_t agreeing = 0;
      while (agreeing <= position &&
             tensors[agreeing].desc.type == data_type(ports[static_cast<std::size_t>(agreeing)]->type))
        ++agreeing;
      if (agreeing > position) return true;
    }
    return false;
  });
}

// Throws unless the kernels take tensors of these sizes.
void Plugin::expect_plan(const Tensors& in, DataType type) const {
  operation_->expect_shapes(in);
  operation_->workspace({in, kPlannedOutputs, call_type(type)});
}

std::int32_t Plugin::configurePlugin(const DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                     const DynamicPluginTensorDesc*, std::int32_t output_count) noexcept {
  return answer([&] {
    expect_outputs(output_count);
    const Tensors least = sized(inputs_, inputs, input_count, &DynamicPluginTensorDesc::min);
    const Tensors most = sized(inputs_, inputs, input_count, &DynamicPluginTensorDesc::max);
    for (const Tensors& in : {least, sized(inputs_, inputs, input_count, &DynamicPluginTensorDesc::opt), most})
      expect_plan(in, inputs[0].desc.type);
    expect_fixed(op_->declaration(), *operation_, least, most);
  });
}

std::size_t Plugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                     const DynamicPluginTensorDesc*, std::int32_t) const noexcept {
  // for sizes that are refused, more than any device has: 0 would be taken for enough
  constexpr std::size_t kRefused = std::size_t{1} << 60;
  return guarded(name(), recorder_, kRefused, [&] {
    const Tensors largest = sized(inputs_, inputs, input_count, &DynamicPluginTensorDesc::max);
    operation_->expect_shapes(largest);
    return static_cast<std::size_t>(
        operation_->workspace_bound({largest, kPlannedOutputs, call_type(inputs[0].desc.type)}));
  });
}

std::int32_t Plugin::getAliasedInput(std::int32_t output) noexcept {
  if (output < 0 || output >= getNbOutputs()) return -1;
  const int place = op_->declaration().outputs[output].alias;
  return place == ops::kNoAlias ? -1 : inputs_.index_of(static_cast<std::size_t>(place));
}

std::int32_t Plugin::onShapeChange(const PluginTensorDesc* inputs, std::int32_t input_count, const PluginTensorDesc*,
                                   std::int32_t output_count) noexcept {
  return answer([&] {
    expect_outputs(output_count);
    const Tensors in = inputs_.tensors(
        input_count, [&](std::int32_t i) { return inputs[i].dims; }, [](std::int32_t) { return kPlanned; });
    expect_plan(in, inputs[0].type);
    input_count_ = input_count;
  });
}

void Plugin::expect_in_place(const void* const* inputs, void* const* outputs) const {
  const ops::Declaration& op = op_->declaration();
  for (std::int32_t i = 0; i < getNbOutputs(); ++i) {
    if (op.outputs[i].alias == ops::kNoAlias) continue;
    if (outputs[i] != inputs[inputs_.index_of(static_cast<std::size_t>(op.outputs[i].alias))])
      fail(op.outputs[i].name, "a buffer of its own",
           std::string("that of ") + op.inputs[op.outputs[i].alias].name +
               ": build the engine with PreviewFeature::kALIASED_PLUGIN_IO_10_03");
  }
}

// Workspaces grow with the multiprocessors, and this one was measured on the device of the build.
void Plugin::expect_device() const {
  const int planned = fields_.multiprocessors(), found = planned > 0 ? ew_cuda_multiprocessors() : 0;
  if (found < 0) ops::fail_as_library();
  if (found > planned)
    fail(kMultiprocessors, std::to_string(found),
         "at most the " + std::to_string(planned) + " of the GPU that the engine was built on: build it on this one");
}

std::int32_t Plugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*, const void* const* inputs,
                             void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return answer([&] {
    if (input_count_ < 0) fail("inputs", "an unknown number", "onShapeChange before enqueue");
    expect_device();
    const Tensors in = inputs_.tensors(
        input_count_, [&](std::int32_t i) { return input_descs[i].dims; },
        [&](std::int32_t i) { return const_cast<void*>(inputs[i]); });
    operation_->expect_shapes(in);
    expect_in_place(inputs, outputs);
    operation_->start({in, outputs, call_type(input_descs[0].type)}, workspace, stream);
  });
}

}  // namespace ew::trt
