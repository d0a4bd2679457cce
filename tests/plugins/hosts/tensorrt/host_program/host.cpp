#include "host.h"

#include <cstdio>
#include <cstring>
#include <deque>

namespace host {

using namespace nvinfer1;

namespace {

// Sizes as expressions; an input's is not constant, and still has a value for tests to read.
class Expression final : public IDimensionExpr {
 public:
  Expression(std::int64_t value, bool constant) : impl_{} {
    impl_.value = value;
    impl_.constant = constant;
    mImpl = &impl_;
  }
  ~Expression() noexcept override = default;

 private:
  struct Impl final : apiv::VDimensionExpr {
    std::int64_t value;
    bool constant;
    bool isConstant() const override { return constant; }
    std::int64_t getConstantValue() const override { return value; }
    bool isSizeTensor() const override { return false; }
  };
  Impl impl_;
};

class Builder final : public IExprBuilder {
 public:
  Builder() { mImpl = &impl_; }
  ~Builder() noexcept override = default;
  const IDimensionExpr* input(std::int64_t value) { return &impl_.made.emplace_back(value, false); }

 private:
  struct Impl final : apiv::VExprBuilder {
    std::deque<Expression> made;
    const IDimensionExpr* constant(std::int64_t value) override { return &made.emplace_back(value, true); }
    const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& first,
                                    const IDimensionExpr& second) override {
      if (operation != DimensionOperation::kPROD) return nullptr;
      return &made.emplace_back(first.getConstantValue() * second.getConstantValue(),
                                first.isConstant() && second.isConstant());
    }
    const IDimensionExpr* declareSizeTensor(std::int32_t, const IDimensionExpr&, const IDimensionExpr&) override {
      return nullptr;
    }
  };
  Impl impl_;
};

int count_of(const std::vector<Tensor>& tensors) { return static_cast<int>(tensors.size()); }

}  // namespace

IPluginCreatorV3One* find_creator(const std::string& op) {
  std::int32_t count = 0;
  IPluginCreatorInterface* const* creators = getCreators(count);
  for (std::int32_t i = 0; i < count; ++i) {
    auto* creator = static_cast<IPluginCreatorV3One*>(creators[i]);
    if (op == creator->getPluginName()) return creator;
  }
  return nullptr;
}

std::unique_ptr<IPluginV3> create(const std::string& op, const std::vector<Field>& fields) {
  std::vector<PluginField> given;
  for (const Field& one : fields)
    given.emplace_back(one.name,
                       one.is_float ? static_cast<const void*>(&one.number) : static_cast<const void*>(&one.integer),
                       one.is_float ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32, 1);
  PluginFieldCollection collection;
  collection.nbFields = static_cast<std::int32_t>(given.size());
  collection.fields = given.data();
  return std::unique_ptr<IPluginV3>(find_creator(op)->createPlugin("node", &collection, TensorRTPhase::kBUILD));
}

std::unique_ptr<IPluginV3> deserialized(const std::string& op, IPluginV3& plugin) {
  const PluginFieldCollection* fields = runtime(plugin).getFieldsToSerialize();
  if (fields == nullptr) return nullptr;
  return std::unique_ptr<IPluginV3>(find_creator(op)->createPlugin("node", fields, TensorRTPhase::kRUNTIME));
}

IPluginV3OneCore& core(IPluginV3& plugin) {
  return *static_cast<IPluginV3OneCore*>(plugin.getCapabilityInterface(PluginCapabilityType::kCORE));
}
IPluginV3OneBuildV2& build(IPluginV3& plugin) {
  return *static_cast<IPluginV3OneBuildV2*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}
IPluginV3OneRuntime& runtime(IPluginV3& plugin) {
  return *static_cast<IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

std::string serialized_text(IPluginV3& plugin) {
  const PluginFieldCollection* fields = runtime(plugin).getFieldsToSerialize();
  std::string text;
  for (std::int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& one = fields->fields[i];
    float number = 0;
    std::int32_t integer = 0;
    char value[32];
    if (one.type == PluginFieldType::kFLOAT32) {
      std::memcpy(&number, one.data, sizeof number);
      std::snprintf(value, sizeof value, "%a", static_cast<double>(number));
    } else {
      std::memcpy(&integer, one.data, sizeof integer);
      std::snprintf(value, sizeof value, "%d", integer);
    }
    text += std::string(text.empty() ? "" : " ") + one.name + "=" + value;
  }
  return text;
}

ErrorCode Recorder::getErrorCode(std::int32_t) const noexcept { return ErrorCode::kINVALID_ARGUMENT; }
IErrorRecorder::ErrorDesc Recorder::getErrorDesc(std::int32_t index) const noexcept {
  return messages[static_cast<std::size_t>(index)].c_str();
}
bool Recorder::reportError(ErrorCode code, ErrorDesc message) noexcept {
  if (code == ErrorCode::kINVALID_ARGUMENT) messages.emplace_back(message);
  return true;
}
void Logger::log(Severity severity, const char* message) noexcept {
  if (severity == Severity::kERROR) messages.emplace_back(message);
}

Dims dims_of(const std::vector<std::int64_t>& sizes) {
  Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) dims.d[i] = sizes[i];
  return dims;
}

PluginTensorDesc desc_of(const Tensor& tensor) {
  return {dims_of(tensor.dims), tensor.type, TensorFormat::kLINEAR, -1.0f};
}

std::vector<PluginTensorDesc> descs_of(const std::vector<Tensor>& tensors) {
  std::vector<PluginTensorDesc> descs;
  for (const Tensor& tensor : tensors) descs.push_back(desc_of(tensor));
  return descs;
}

std::vector<DynamicPluginTensorDesc> profile_of(const std::vector<Tensor>& least, const std::vector<Tensor>& most) {
  std::vector<DynamicPluginTensorDesc> descs;
  for (std::size_t i = 0; i < most.size(); ++i) {
    DynamicPluginTensorDesc desc{desc_of(most[i]), dims_of(least[i].dims), dims_of(most[i].dims),
                                 dims_of(most[i].dims)};
    for (int axis = 0; axis < desc.desc.dims.nbDims; ++axis)
      if (desc.min.d[axis] != desc.max.d[axis]) desc.desc.dims.d[axis] = -1;
    descs.push_back(desc);
  }
  return descs;
}

std::vector<Tensor> outputs_of(IPluginV3& plugin, const std::vector<Tensor>& inputs) {
  IPluginV3OneBuildV2& asked = build(plugin);
  const std::int32_t count = asked.getNbOutputs();
  Builder builder;
  std::vector<DimsExprs> sizes, results(static_cast<std::size_t>(count));
  std::vector<DataType> types, result_types(static_cast<std::size_t>(count));
  for (const Tensor& input : inputs) {
    DimsExprs dims{};
    for (std::int64_t size : input.dims) dims.d[dims.nbDims++] = builder.input(size);
    sizes.push_back(dims);
    types.push_back(input.type);
  }
  if (asked.getOutputDataTypes(result_types.data(), count, types.data(), count_of(inputs)) != 0) return {};
  if (asked.getOutputShapes(sizes.data(), count_of(inputs), nullptr, 0, results.data(), count, builder) != 0) return {};
  std::vector<Tensor> outputs;
  for (std::size_t i = 0; i < results.size(); ++i) {
    outputs.push_back({result_types[i], {}});
    for (int axis = 0; axis < results[i].nbDims; ++axis)
      outputs.back().dims.push_back(results[i].d[axis]->getConstantValue());
  }
  return outputs;
}

int first_refused(IPluginV3& plugin, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs) {
  std::vector<Tensor> all = inputs;
  all.insert(all.end(), outputs.begin(), outputs.end());
  const std::vector<DynamicPluginTensorDesc> descs = profile_of(all, all);
  for (int i = 0; i < count_of(all); ++i)
    if (!build(plugin).supportsFormatCombination(i, descs.data(), count_of(inputs), count_of(outputs))) return i;
  return -1;
}

int configure(IPluginV3& plugin, const std::vector<Tensor>& least, const std::vector<Tensor>& most) {
  const std::vector<DynamicPluginTensorDesc> in = profile_of(least, most);
  return build(plugin).configurePlugin(in.data(), count_of(most), nullptr, build(plugin).getNbOutputs());
}

std::size_t workspace(IPluginV3& plugin, const std::vector<Tensor>& most) {
  const std::vector<DynamicPluginTensorDesc> in = profile_of(most, most);
  return build(plugin).getWorkspaceSize(in.data(), count_of(most), nullptr, build(plugin).getNbOutputs());
}

int enqueue(IPluginV3& plugin, const std::vector<Tensor>& inputs, const std::vector<Tensor>& outputs, void* workspace,
            void* stream) {
  const std::vector<PluginTensorDesc> in = descs_of(inputs), out = descs_of(outputs);
  std::vector<const void*> read;
  std::vector<void*> written;
  for (const Tensor& tensor : inputs) read.push_back(tensor.data);
  for (const Tensor& tensor : outputs) written.push_back(tensor.data);
  IPluginV3OneRuntime& running = runtime(plugin);
  if (running.onShapeChange(in.data(), count_of(inputs), out.data(), count_of(outputs)) != 0) return 1;
  return running.enqueue(in.data(), out.data(), read.data(), written.data(), workspace,
                         static_cast<cudaStream_t>(stream));
}

}  // namespace host
