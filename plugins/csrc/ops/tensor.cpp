#include "ops/tensor.h"

#include <stdexcept>

namespace ew::ops {
namespace {

std::string text(const Tensor& tensor) {
  if (tensor.rank < 0) return "nothing";
  if (tensor.rank > Tensor::kMaxRank) return std::to_string(tensor.rank) + " axes";
  std::string shape;
  for (int axis = 0; axis < tensor.rank; ++axis) shape += (axis ? ", " : "") + std::to_string(tensor.shape[axis]);
  return "[" + shape + "]";
}

}  // namespace

void fail(const std::string& name, const std::string& got, const std::string& expected) {
  throw std::invalid_argument(name + ": got " + got + ", expected " + expected);
}

void expect_shape(const char* name, const Tensor& tensor, std::initializer_list<std::int64_t> shape,
                  const char* names) {
  bool agrees = tensor.rank == static_cast<int>(shape.size());
  std::string sizes;
  int axis = 0;
  for (std::int64_t size : shape) {
    agrees = agrees && (size < 0 || size == tensor.shape[axis]);
    sizes += (axis++ ? ", " : "") + (size < 0 ? std::string("any") : std::to_string(size));
  }
  if (!agrees) fail(name, "shape " + text(tensor), std::string(names) + " = [" + sizes + "]");
}

}  // namespace ew::ops
