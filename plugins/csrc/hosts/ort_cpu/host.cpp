#include "hosts/ort_cpu/host.h"

namespace ew::ort {
namespace {

void read_shape(const Api& api, const Value* value, Tensor& tensor) {
  TensorInfo* info = nullptr;
  check(GetTensorTypeAndShape(api)(value, &info));
  std::size_t rank = 0;
  Status* status = GetDimensionsCount(api)(info, &rank);
  if (!status && rank <= Tensor::kMaxRank) status = GetDimensions(api)(info, tensor.shape, rank);
  ReleaseTensorTypeAndShapeInfo(api)(info);
  check(status);
  tensor.rank = static_cast<int>(rank);
}

// Drop the status of a question whose answer was no.
bool answered(const Api& api, Status* status) {
  if (status) ReleaseStatus(api)(status);
  return !status;
}

}  // namespace

std::size_t input_count(const Api& api, KernelContext* context) {
  std::size_t count = 0;
  check(KernelContext_GetInputCount(api)(context, &count));
  return count;
}

Tensor input(const Api& api, KernelContext* context, std::size_t index) {
  Tensor tensor;
  const Value* value = nullptr;
  if (index < input_count(api, context)) check(KernelContext_GetInput(api)(context, index, &value));
  if (!value) return tensor;
  read_shape(api, value, tensor);
  check(GetTensorMutableData(api)(const_cast<Value*>(value), &tensor.data));
  return tensor;
}

Tensor output(const Api& api, KernelContext* context, std::size_t index, std::initializer_list<std::int64_t> shape) {
  Tensor tensor;
  Value* value = nullptr;
  check(KernelContext_GetOutput(api)(context, index, shape.begin(), shape.size(), &value));
  if (!value) return tensor;
  check(GetTensorMutableData(api)(value, &tensor.data));
  tensor.rank = static_cast<int>(shape.size());
  std::size_t axis = 0;
  for (std::int64_t size : shape) tensor.shape[axis++] = size;
  return tensor;
}

std::int64_t NodeAttributes::read(const char* name, const std::int64_t* fallback) const {
  std::int64_t value = 0;
  if (answered(api_, KernelInfoGetAttribute_int64(api_)(info_, name, &value))) return value;
  float other = 0;
  if (answered(api_, KernelInfoGetAttribute_float(api_)(info_, name, &other))) fail(name, "a float", "an int");
  if (!fallback) fail(name, "no attribute", "an int");
  return *fallback;
}

float NodeAttributes::read(const char* name, const float* fallback) const {
  float value = 0;
  if (answered(api_, KernelInfoGetAttribute_float(api_)(info_, name, &value))) return value;
  std::int64_t other = 0;
  if (answered(api_, KernelInfoGetAttribute_int64(api_)(info_, name, &other))) fail(name, "an int", "a float");
  if (!fallback) fail(name, "no attribute", "a float");
  return *fallback;
}

}  // namespace ew::ort
