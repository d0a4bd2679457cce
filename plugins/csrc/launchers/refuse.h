// Checks of everything that the host knows about a call, and the path of their messages out of the library.
#pragma once

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <string>

#include "launchers/launch.h"

// A size as text, for the messages that list those a kernel is compiled for.
#define EW_TEXT(x) #x

namespace ew::cuda {

[[noreturn]] inline void refuse(const char* op, const std::string& name, const std::string& got,
                                const std::string& expected) {
  throw Refused(std::string(op) + ": " + name + ": got " + got + ", expected " + expected);
}

inline void expect(bool holds, const char* op, const char* name, std::int64_t got, const std::string& expected) {
  if (!holds) refuse(op, name, std::to_string(got), expected);
}

inline void expect_pointer(const char* op, const char* name, const void* pointer) {
  if (pointer == nullptr) refuse(op, name, "a null pointer", "device memory");
}

// 16 bytes at a time are read and written.
inline void expect_aligned(const char* op, const char* name, const void* pointer) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0)
    refuse(op, name, "an address that is not a multiple of 16", "one that is");
}

inline void expect_tensor(const char* op, const std::string& name, const void* pointer) {
  expect_pointer(op, name.c_str(), pointer);
  expect_aligned(op, name.c_str(), pointer);
}

inline void expect_type(const char* op, std::int32_t type) {
  expect(type == kHalf || type == kBfloat16, op, "type", type, "0 (half) or 1 (bfloat16)");
}

inline void expect_workspace(const char* op, const void* workspace, std::int64_t bytes, std::int64_t needed) {
  expect(bytes >= needed, op, "workspace", bytes, std::to_string(needed) + " bytes or more");
  if (needed > 0) expect_pointer(op, "workspace", workspace);
  expect_aligned(op, "workspace", workspace);
}

void set_error(const std::string& message);

// Runs `body`, which returns a number; a refusal becomes `refused` and the thread's error.
template <class Result, class Body>
Result guarded(Result refused, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    set_error(error.what());
    return refused;
  }
}

// Hands out parts of a workspace, each aligned to 256 bytes; with a null base it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  T* take(std::int64_t count) {
    const std::int64_t at = used_;
    used_ += (count * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }
  std::int64_t used() const { return used_; }

 private:
  unsigned char* base_;
  std::int64_t used_ = 0;
};

}  // namespace ew::cuda
