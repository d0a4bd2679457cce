// A node from creation to its results, through C for pytest: as a builder, an engine and an execution context call it.
// Tensors are the caller's, on the host; the kernels have copies where they run.
#include <algorithm>
#include <map>

#include "abi/cuda_calls.h"
#include "host.h"

#define EW_TEST_EXPORT extern "C" __attribute__((visibility("default")))

using namespace host;

namespace {

constexpr std::ptrdiff_t kGuard = 4096;  // as the caller has after its arrays
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

class Stream {
 public:
  Stream() : stream_(ew_cuda_create_stream()) { expect(stream_ != nullptr, ew_cuda_error()); }
  Stream(const Stream&) = delete;
  ~Stream() { ew_cuda_destroy_stream(stream_); }
  void* get() const { return stream_; }
  void wait() const { expect(ew_cuda_synchronize(stream_) == 0, ew_cuda_error()); }

 private:
  void* stream_;
};

// Memory where the kernels run, and kGuard bytes after it.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(static_cast<std::int64_t>(bytes + std::size_t{kGuard})) {
    address_ = ew_cuda_allocate(bytes_);
    expect(address_ != nullptr, ew_cuda_error());
  }
  Memory(const Memory&) = delete;
  ~Memory() { ew_cuda_free(address_); }
  void* address() const { return address_; }
  // Both with the guard.
  void read(const void* host, const Stream& stream) const { copy(address_, host, stream); }
  void write(void* host, const Stream& stream) const { copy(host, address_, stream); }

 private:
  void copy(void* to, const void* from, const Stream& stream) const {
    expect(ew_cuda_copy(to, bytes_, from, bytes_, bytes_, 1, stream.get()) == 0, ew_cuda_error());
    stream.wait();
  }

  void* address_;
  std::int64_t bytes_;
};

std::size_t bytes_of(const Tensor& tensor) {
  std::size_t bytes = tensor.type == DataType::kINT64                                      ? 8
                      : tensor.type == DataType::kFLOAT || tensor.type == DataType::kINT32 ? 4
                      : tensor.type == DataType::kINT8                                     ? 1
                                                                                           : 2;
  for (std::int64_t size : tensor.dims) bytes *= static_cast<std::size_t>(size);
  return bytes;
}

// The caller's arrays, each with its guard, where the kernels run; two tensors of one array stay of one.
class Arrays {
 public:
  explicit Arrays(const Stream& stream) : stream_(stream) {}

  std::vector<Tensor> there(std::vector<Tensor> tensors) {
    for (Tensor& tensor : tensors) {
      const auto [place, added] = memory_.try_emplace(tensor.data, bytes_of(tensor));
      if (added) place->second.read(tensor.data, stream_);
      tensor.data = place->second.address();
    }
    return tensors;
  }
  void bring_back() const {
    for (const auto& [host, memory] : memory_) memory.write(host, stream_);
  }

 private:
  const Stream& stream_;
  std::map<void*, Memory> memory_;
};

// Runs with a workspace of just the size that was asked for, full of NaNs and with more of them after it.
void run_with_workspace(nvinfer1::IPluginV3& plugin, const std::vector<Tensor>& inputs,
                        const std::vector<Tensor>& outputs, std::size_t bytes) {
  const Stream stream;
  Arrays arrays(stream);
  const std::vector<Tensor> in = arrays.there(inputs), out = arrays.there(outputs);
  std::vector<unsigned char> nans(bytes + std::size_t{kGuard}, kPoison);
  const Memory memory(bytes);
  memory.read(nans.data(), stream);
  expect(enqueue(plugin, in, out, memory.address(), stream.get()) == 0);
  stream.wait();
  memory.write(nans.data(), stream);
  arrays.bring_back();
  expect(std::all_of(nans.end() - kGuard, nans.end(), [](unsigned char x) { return x == kPoison; }),
         "a kernel wrote behind its workspace");
}

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
  const std::size_t bytes = workspace(*plugin, inputs);
  const auto loaded = deserialized(op, *plugin);
  expect(loaded != nullptr);
  Recorder recorder;
  Context context(&recorder);
  const std::unique_ptr<nvinfer1::IPluginV3> attached(runtime(*loaded).attachToContext(&context));
  expect(attached != nullptr);
  run_with_workspace(*attached, inputs, outputs, bytes);
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
