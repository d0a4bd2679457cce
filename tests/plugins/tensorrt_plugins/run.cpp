// A node from creation to its results, through C for pytest: as a builder, an engine and an execution context call it.
#include <algorithm>
#include <cstring>

#include "host.h"

#define EW_TEST_EXPORT extern "C" __attribute__((visibility("default")))

using namespace host;

namespace {

constexpr std::size_t kGuard = 4096;
constexpr unsigned char kPoison = 0xff;

std::string message;

struct Refused {};

// `said`: the plugin's own message where nothing is given.
void expect(bool holds, const std::string& said = "") {
  if (holds) return;
  message = said.empty() ? ew_trt_error() : said;
  throw Refused{};
}

struct GivenTensor {
  std::int32_t type, rank;
  std::int64_t dims[8];
  void* data;
};

std::vector<Tensor> tensors(const GivenTensor* given, int count) {
  std::vector<Tensor> all;
  for (int i = 0; i < count; ++i)
    all.push_back(
        {static_cast<DataType>(given[i].type), {given[i].dims, given[i].dims + given[i].rank}, given[i].data});
  return all;
}

std::unique_ptr<nvinfer1::IPluginV3> created(const char* op, const Field* fields, int count) {
  auto plugin = create(op, {fields, fields + count});
  expect(plugin != nullptr);
  return plugin;
}

// Memory of just this size, full of NaNs and with more of them behind it.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) : memory_(bytes + kGuard + 256, kPoison), bytes_(bytes) {}
  unsigned char* start() {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    return memory_.data() + (256 - address % 256) % 256;
  }
  bool is_intact() {
    return std::all_of(start() + bytes_, memory_.data() + memory_.size(), [](unsigned char x) { return x == kPoison; });
  }

 private:
  std::vector<unsigned char> memory_;
  std::size_t bytes_;
};

void run(const char* op, const Field* fields, int field_count, const std::vector<Tensor>& inputs,
         const std::vector<Tensor>& outputs) {
  const auto made = created(op, fields, field_count);
  const std::unique_ptr<nvinfer1::IPluginV3> plugin(made->clone());
  const std::vector<Tensor> declared = outputs_of(*plugin, inputs);
  expect(!declared.empty());
  expect(declared.size() == outputs.size(), "the plugin has another number of outputs");
  for (std::size_t i = 0; i < declared.size(); ++i)
    expect(declared[i].type == outputs[i].type && declared[i].dims == outputs[i].dims,
           "output " + std::to_string(i) + " has another type or shape");
  expect(first_refused(*plugin, inputs, outputs) == -1, "a format is refused");
  expect(configure(*plugin, inputs, inputs) == 0);
  Workspace memory(workspace(*plugin, inputs));
  const auto loaded = deserialized(op, *plugin);
  expect(loaded != nullptr);
  Recorder recorder;
  Context context(&recorder);
  const std::unique_ptr<nvinfer1::IPluginV3> attached(runtime(*loaded).attachToContext(&context));
  expect(attached != nullptr);
  expect(enqueue(*attached, inputs, outputs, memory.start()) == 0);
  expect(memory.is_intact(), "a kernel wrote behind its workspace");
}

}  // namespace

// 0, or -1 and ew_trt_test_message.
EW_TEST_EXPORT int ew_trt_test_run(const char* op, const Field* fields, int field_count, const GivenTensor* inputs,
                                   int input_count, const GivenTensor* outputs, int output_count) {
  try {
    run(op, fields, field_count, tensors(inputs, input_count), tensors(outputs, output_count));
    return 0;
  } catch (const Refused&) {
    return -1;
  }
}

// Bytes of workspace for a profile whose largest sizes are these, or -1 and ew_trt_test_message.
EW_TEST_EXPORT std::int64_t ew_trt_test_workspace(const char* op, const Field* fields, int field_count,
                                                  const GivenTensor* inputs, int input_count) {
  try {
    const auto plugin = created(op, fields, field_count);
    const std::vector<Tensor> most = tensors(inputs, input_count);
    expect(configure(*plugin, most, most) == 0);
    return static_cast<std::int64_t>(workspace(*plugin, most));
  } catch (const Refused&) {
    return -1;
  }
}

EW_TEST_EXPORT const char* ew_trt_test_message() { return message.c_str(); }

// "OP VERSION NAMESPACE: name:type name:type ...\n" of every creator, types by TensorRT's number.
EW_TEST_EXPORT const char* ew_trt_test_creators() {
  static std::string text;
  text.clear();
  std::int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
  for (std::int32_t i = 0; i < count; ++i) {
    auto& creator = *static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    text += std::string(creator.getPluginName()) + " " + creator.getPluginVersion() + " " +
            creator.getPluginNamespace() + ":";
    const nvinfer1::PluginFieldCollection& fields = *creator.getFieldNames();
    for (std::int32_t j = 0; j < fields.nbFields; ++j)
      text += std::string(" ") + fields.fields[j].name + ":" + std::to_string(static_cast<int>(fields.fields[j].type));
    text += "\n";
  }
  return text.c_str();
}
