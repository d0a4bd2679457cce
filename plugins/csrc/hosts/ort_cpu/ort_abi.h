// The part of ONNX Runtime's C ABI that we use, declared by ourselves: its wheels carry no headers.
//
// The ABI only ever grows at the end, so an entry's index and a struct's prefix hold for every later release. The
// OrtApi function table is addressed by index; tests/plugins/libraries/test_cpu.py compares EW_ORT_ENTRIES with the
// official header where that is present.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/declaration.h"

namespace ew::ort {

using namespace ops;  // its ElementType and Presence have the values that ONNX Runtime gives them

constexpr std::uint32_t kApiVersion = 21;  // ONNX Runtime 1.21 and later

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;
struct CustomOp;
struct Allocator;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };
enum MemoryType : int { kDefaultMemory = 0 };

// X(index in OrtApi, name, result, arguments)
#define EW_ORT_ENTRIES(X)                                                                                           \
  X(0, CreateStatus, Status*, (ErrorCode, const char*))                                                             \
  X(26, CreateCustomOpDomain, Status*, (const char*, CustomOpDomain**))                                             \
  X(27, CustomOpDomain_Add, Status*, (CustomOpDomain*, const CustomOp*))                                            \
  X(28, AddCustomOpDomain, Status*, (SessionOptions*, CustomOpDomain*))                                             \
  X(51, GetTensorMutableData, Status*, (Value*, void**))                                                            \
  X(60, GetTensorElementType, Status*, (const TensorInfo*, ElementType*))                                           \
  X(61, GetDimensionsCount, Status*, (const TensorInfo*, std::size_t*))                                             \
  X(62, GetDimensions, Status*, (const TensorInfo*, std::int64_t*, std::size_t))                                    \
  X(65, GetTensorTypeAndShape, Status*, (const Value*, TensorInfo**))                                               \
  X(75, AllocatorAlloc, Status*, (Allocator*, std::size_t, void**))                                                 \
  X(76, AllocatorFree, Status*, (Allocator*, void*))                                                                \
  X(85, KernelInfoGetAttribute_float, Status*, (const KernelInfo*, const char*, float*))                            \
  X(86, KernelInfoGetAttribute_int64, Status*, (const KernelInfo*, const char*, std::int64_t*))                     \
  X(88, KernelContext_GetInputCount, Status*, (const KernelContext*, std::size_t*))                                 \
  X(90, KernelContext_GetInput, Status*, (const KernelContext*, std::size_t, const Value**))                        \
  X(91, KernelContext_GetOutput, Status*, (KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**)) \
  X(93, ReleaseStatus, void, (Status*))                                                                             \
  X(99, ReleaseTensorTypeAndShapeInfo, void, (TensorInfo*))                                                         \
  X(101, ReleaseCustomOpDomain, void, (CustomOpDomain*))                                                            \
  X(132, ReleaseAllocator, void, (Allocator*))                                                                      \
  X(193, KernelContext_GetGPUComputeStream, Status*, (const KernelContext*, void**))                                \
  X(274, KernelContext_ParallelFor, Status*,                                                                        \
    (const KernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*))                          \
  X(278, KernelInfoGetAllocator, Status*, (const KernelInfo*, MemoryType, Allocator**))

// OrtApi: a table of function pointers.
struct Api {
  void (*entry[279])();
};

#define EW_ORT_CALL(index, name, result, arguments) \
  inline auto name(const Api& api) { return reinterpret_cast<result(*) arguments>(api.entry[index]); }
EW_ORT_ENTRIES(EW_ORT_CALL)
#undef EW_ORT_CALL

// OrtApiBase: what RegisterCustomOps is given.
struct ApiBase {
  const Api* (*get_api)(std::uint32_t version);
  const char* (*version)();
};

// OrtCustomOp as of API version 21: a version and callbacks; null where we leave the default.
struct CustomOp {
  std::uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*execution_provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, std::size_t);
  std::size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, std::size_t);
  std::size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy_kernel)(void*);
  Presence (*input_presence)(const CustomOp*, std::size_t);
  Presence (*output_presence)(const CustomOp*, std::size_t);
  MemoryType (*input_memory)(const CustomOp*, std::size_t);
  int (*variadic_input_minimum)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_minimum)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_shapes)(const CustomOp*, void*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  std::size_t (*may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  std::size_t (*alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};

}  // namespace ew::ort
