// Prints the ABI of the interfaces that the plugins use, for a comparison of our declaration with NVIDIA's headers.
#include <NvInferRuntime.h>

#include <cstdio>
#include <cstring>

using namespace nvinfer1;

namespace {

// Of a virtual function: its place in the table, as the C++ ABI keeps it in a pointer to member.
template <class Member>
void slot(const char* name, Member member) {
  static_assert(sizeof member == 2 * sizeof(void*), "a pointer to a member function has two words");
  std::uintptr_t words[2];
  std::memcpy(words, &member, sizeof words);
  std::printf("slot %s %zu %zu\n", name, static_cast<std::size_t>(words[0]), static_cast<std::size_t>(words[1]));
}

template <class Member>
void data(const char* name, Member member) {
  std::ptrdiff_t offset;
  static_assert(sizeof member == sizeof offset, "a pointer to a data member is an offset");
  std::memcpy(&offset, &member, sizeof offset);
  std::printf("offset %s %td\n", name, offset);
}

struct Expression : IDimensionExpr {
  static void report() { data("IDimensionExpr::mImpl", &Expression::mImpl); }
};
struct Builder : IExprBuilder {
  static void report() { data("IExprBuilder::mImpl", &Builder::mImpl); }
};

// Objects of the interfaces, to ask their names and versions and what they do by default.
struct APlugin final : IPluginV3 {
  IPluginCapability* getCapabilityInterface(PluginCapabilityType) noexcept override { return nullptr; }
  IPluginV3* clone() noexcept override { return nullptr; }
};
struct ACore final : IPluginV3OneCore {
  const char* getPluginName() const noexcept override { return ""; }
  const char* getPluginVersion() const noexcept override { return ""; }
  const char* getPluginNamespace() const noexcept override { return ""; }
};
using Sized = const DynamicPluginTensorDesc*;
struct ABuild final : IPluginV3OneBuildV2 {
  int32_t configurePlugin(Sized, int32_t, Sized, int32_t) noexcept override { return 0; }
  int32_t getOutputDataTypes(DataType*, int32_t, const DataType*, int32_t) const noexcept override { return 0; }
  int32_t getOutputShapes(const DimsExprs*, int32_t, const DimsExprs*, int32_t, DimsExprs*, int32_t,
                          IExprBuilder&) noexcept override {
    return 0;
  }
  bool supportsFormatCombination(int32_t, Sized, int32_t, int32_t) noexcept override { return false; }
  int32_t getNbOutputs() const noexcept override { return 0; }
};
using Desc = const PluginTensorDesc*;
struct ARuntime final : IPluginV3OneRuntime {
  int32_t onShapeChange(Desc, int32_t, Desc, int32_t) noexcept override { return 0; }
  int32_t enqueue(Desc, Desc, const void* const*, void* const*, void*, cudaStream_t) noexcept override { return 0; }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return nullptr; }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return nullptr; }
};
struct ACreator final : IPluginCreatorV3One {
  IPluginV3* createPlugin(const char*, const PluginFieldCollection*, TensorRTPhase) noexcept override {
    return nullptr;
  }
  const PluginFieldCollection* getFieldNames() noexcept override { return nullptr; }
  const char* getPluginName() const noexcept override { return ""; }
  const char* getPluginVersion() const noexcept override { return ""; }
  const char* getPluginNamespace() const noexcept override { return ""; }
};

void report_kind(const IVersionedInterface& object) {
  const InterfaceInfo info = object.getInterfaceInfo();
  std::printf("kind %s %d %d\n", info.kind, info.major, info.minor);
}

#define EW_SLOT(Interface, function) slot(#Interface "::" #function, &Interface::function)
#define EW_DATA(Struct, member) data(#Struct "::" #member, &Struct::member)
#define EW_SIZE(Type) std::printf("size " #Type " %zu %zu\n", sizeof(Type), alignof(Type))
#define EW_VALUE(Enumerator) std::printf("value " #Enumerator " %lld\n", static_cast<long long>(Enumerator))

void report_slots() {
  EW_SLOT(IVersionedInterface, getAPILanguage);
  EW_SLOT(IVersionedInterface, getInterfaceInfo);
  EW_SLOT(IPluginV3, getCapabilityInterface);
  EW_SLOT(IPluginV3, clone);
  EW_SLOT(IPluginV3OneCore, getPluginName);
  EW_SLOT(IPluginV3OneCore, getPluginVersion);
  EW_SLOT(IPluginV3OneCore, getPluginNamespace);
  EW_SLOT(IPluginV3OneBuildV2, configurePlugin);
  EW_SLOT(IPluginV3OneBuildV2, getOutputDataTypes);
  EW_SLOT(IPluginV3OneBuildV2, getOutputShapes);
  EW_SLOT(IPluginV3OneBuildV2, supportsFormatCombination);
  EW_SLOT(IPluginV3OneBuildV2, getNbOutputs);
  EW_SLOT(IPluginV3OneBuildV2, getWorkspaceSize);
  EW_SLOT(IPluginV3OneBuildV2, getValidTactics);
  EW_SLOT(IPluginV3OneBuildV2, getNbTactics);
  EW_SLOT(IPluginV3OneBuildV2, getTimingCacheID);
  EW_SLOT(IPluginV3OneBuildV2, getFormatCombinationLimit);
  EW_SLOT(IPluginV3OneBuildV2, getMetadataString);
  EW_SLOT(IPluginV3OneBuildV2, getAliasedInput);
  EW_SLOT(IPluginV3OneRuntime, setTactic);
  EW_SLOT(IPluginV3OneRuntime, onShapeChange);
  EW_SLOT(IPluginV3OneRuntime, enqueue);
  EW_SLOT(IPluginV3OneRuntime, attachToContext);
  EW_SLOT(IPluginV3OneRuntime, getFieldsToSerialize);
  EW_SLOT(IPluginCreatorV3One, createPlugin);
  EW_SLOT(IPluginCreatorV3One, getFieldNames);
  EW_SLOT(IPluginCreatorV3One, getPluginName);
  EW_SLOT(IPluginCreatorV3One, getPluginVersion);
  EW_SLOT(IPluginCreatorV3One, getPluginNamespace);
}

void report_slots_of_the_host() {
  EW_SLOT(IPluginResourceContext, getGpuAllocator);
  EW_SLOT(IPluginResourceContext, getErrorRecorder);
  EW_SLOT(IErrorRecorder, getNbErrors);
  EW_SLOT(IErrorRecorder, getErrorCode);
  EW_SLOT(IErrorRecorder, getErrorDesc);
  EW_SLOT(IErrorRecorder, hasOverflowed);
  EW_SLOT(IErrorRecorder, clear);
  EW_SLOT(IErrorRecorder, reportError);
  EW_SLOT(IErrorRecorder, incRefCount);
  EW_SLOT(IErrorRecorder, decRefCount);
  EW_SLOT(ILogger, log);
  EW_SLOT(ILoggerFinder, findLogger);
  EW_SLOT(apiv::VDimensionExpr, isConstant);
  EW_SLOT(apiv::VDimensionExpr, getConstantValue);
  EW_SLOT(apiv::VDimensionExpr, isSizeTensor);
  EW_SLOT(apiv::VExprBuilder, constant);
  EW_SLOT(apiv::VExprBuilder, operation);
  EW_SLOT(apiv::VExprBuilder, declareSizeTensor);
}

void report_layouts() {
  EW_SIZE(Dims);
  EW_SIZE(PluginTensorDesc);
  EW_SIZE(DynamicPluginTensorDesc);
  EW_SIZE(PluginField);
  EW_SIZE(PluginFieldCollection);
  EW_SIZE(DimsExprs);
  EW_SIZE(InterfaceInfo);
  EW_DATA(Dims, nbDims);
  EW_DATA(Dims, d);
  EW_DATA(PluginTensorDesc, dims);
  EW_DATA(PluginTensorDesc, type);
  EW_DATA(PluginTensorDesc, format);
  EW_DATA(PluginTensorDesc, scale);
  EW_DATA(DynamicPluginTensorDesc, desc);
  EW_DATA(DynamicPluginTensorDesc, min);
  EW_DATA(DynamicPluginTensorDesc, max);
  EW_DATA(DynamicPluginTensorDesc, opt);
  EW_DATA(PluginField, name);
  EW_DATA(PluginField, data);
  EW_DATA(PluginField, type);
  EW_DATA(PluginField, length);
  EW_DATA(PluginFieldCollection, nbFields);
  EW_DATA(PluginFieldCollection, fields);
  EW_DATA(DimsExprs, nbDims);
  EW_DATA(DimsExprs, d);
  EW_DATA(InterfaceInfo, kind);
  EW_DATA(InterfaceInfo, major);
  EW_DATA(InterfaceInfo, minor);
  Expression::report();
  Builder::report();
}

void report_numbers() {
  EW_VALUE(DataType::kFLOAT);
  EW_VALUE(DataType::kHALF);
  EW_VALUE(DataType::kINT8);
  EW_VALUE(DataType::kINT32);
  EW_VALUE(DataType::kBOOL);
  EW_VALUE(DataType::kUINT8);
  EW_VALUE(DataType::kFP8);
  EW_VALUE(DataType::kBF16);
  EW_VALUE(DataType::kINT64);
  EW_VALUE(DataType::kINT4);
  EW_VALUE(TensorFormat::kLINEAR);
  EW_VALUE(TensorFormat::kCHW2);
  EW_VALUE(TensorFormat::kHWC8);
  EW_VALUE(PluginFieldType::kFLOAT16);
  EW_VALUE(PluginFieldType::kFLOAT32);
  EW_VALUE(PluginFieldType::kFLOAT64);
  EW_VALUE(PluginFieldType::kINT8);
  EW_VALUE(PluginFieldType::kINT16);
  EW_VALUE(PluginFieldType::kINT32);
  EW_VALUE(PluginFieldType::kCHAR);
  EW_VALUE(PluginFieldType::kDIMS);
  EW_VALUE(PluginFieldType::kUNKNOWN);
  EW_VALUE(PluginFieldType::kBF16);
  EW_VALUE(PluginFieldType::kINT64);
  EW_VALUE(TensorRTPhase::kBUILD);
  EW_VALUE(TensorRTPhase::kRUNTIME);
  EW_VALUE(PluginCapabilityType::kCORE);
  EW_VALUE(PluginCapabilityType::kBUILD);
  EW_VALUE(PluginCapabilityType::kRUNTIME);
  EW_VALUE(DimensionOperation::kSUM);
  EW_VALUE(DimensionOperation::kPROD);
  EW_VALUE(APILanguage::kCPP);
  EW_VALUE(APILanguage::kPYTHON);
  EW_VALUE(ErrorCode::kSUCCESS);
  EW_VALUE(ErrorCode::kUNSPECIFIED_ERROR);
  EW_VALUE(ErrorCode::kINTERNAL_ERROR);
  EW_VALUE(ErrorCode::kINVALID_ARGUMENT);
  EW_VALUE(ILogger::Severity::kINTERNAL_ERROR);
  EW_VALUE(ILogger::Severity::kERROR);
  EW_VALUE(ILogger::Severity::kWARNING);
  EW_VALUE(ILogger::Severity::kINFO);
  EW_VALUE(ILogger::Severity::kVERBOSE);
  EW_VALUE(Dims::MAX_DIMS);
}

}  // namespace

int main() {
  report_slots();
  report_slots_of_the_host();
  report_layouts();
  report_numbers();
  report_kind(APlugin());
  report_kind(ACore());
  report_kind(ABuild());
  report_kind(ARuntime());
  report_kind(ACreator());
}
