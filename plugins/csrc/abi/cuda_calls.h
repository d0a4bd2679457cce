// The C functions of libenginewright_cuda: raw device pointers and a stream in, no framework.
//
// Each kernel has a struct that describes a call, a query of the workspace it needs, and a launch: generated/calls/*.h
// has them, and plugins/ops describes them. What they have in common is here. A launch checks what the host knows,
// starts kernels on `stream` (a cudaStream_t) and returns: it allocates nothing, waits for nothing, and so can be
// captured in a CUDA graph. Both return a negative number for a call they refuse, and ew_cuda_error says why: "Op:
// name: got X, expected Y".
//
// The host does not look at device memory: lengths, tables and slots must be what the scheduler makes them. The same
// functions with host pointers are in the emulated library of the tests.
#pragma once

#include <stdint.h>

#define EW_EXPORT __attribute__((visibility("default")))

// Raised with every change of a function below or of the struct of a call; a loader compares it.
#define EW_CUDA_ABI 2

enum { EW_HALF = 0, EW_BFLOAT16 = 1 };

#ifdef __cplusplus
extern "C" {
#endif

EW_EXPORT int ew_cuda_abi(void);
EW_EXPORT const char* ew_cuda_version(void);
// Why the last call of this thread was refused.
EW_EXPORT const char* ew_cuda_error(void);
// 0, or a negative number and an error where this machine's driver or device cannot run the library.
EW_EXPORT int ew_cuda_check_device(void);
// The current device's multiprocessors, or a negative number and an error; workspaces grow with it.
EW_EXPORT int ew_cuda_multiprocessors(void);

// For runtimes without another access to the device. Memory comes full of zeros; null and an error where there is none.
EW_EXPORT void* ew_cuda_allocate(int64_t bytes);
EW_EXPORT void ew_cuda_free(void* memory);
EW_EXPORT void* ew_cuda_allocate_host(int64_t bytes);  // pinned
EW_EXPORT void ew_cuda_free_host(void* memory);
EW_EXPORT int64_t ew_cuda_free_bytes(void);
EW_EXPORT void* ew_cuda_create_stream(void);
EW_EXPORT void ew_cuda_destroy_stream(void* stream);
EW_EXPORT int ew_cuda_synchronize(void* stream);
// `height` pieces of `width` bytes, between any two memories; pitches are from one piece to the next.
EW_EXPORT int ew_cuda_copy(void* to, int64_t to_pitch, const void* from, int64_t from_pitch, int64_t width,
                           int64_t height, void* stream);

#ifdef __cplusplus
}
#endif
