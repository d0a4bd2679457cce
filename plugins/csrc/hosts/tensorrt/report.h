// Sends messages out of the library: to TensorRT's error recorder and logger, and to ew_trt_error. Exceptions never
// leave it.
#pragma once

#include <NvInferRuntime.h>

#include <exception>

namespace ew::trt {

// Says "OP: MESSAGE" to `recorder` (or null), to the logger that TensorRT finds for this thread, and in last_error().
void report(const char* op, const char* message, nvinfer1::IErrorRecorder* recorder) noexcept;

// The last message of this thread; empty where there was none.
const char* last_error() noexcept;

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// Runs `body`; an exception becomes a message and `refused`.
template <class Result, class Body>
Result guarded(const char* op, nvinfer1::IErrorRecorder* recorder, Result refused, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    report(op, error.what(), recorder);
  } catch (...) {
    report(op, "an exception of unknown type", recorder);
  }
  return refused;
}

}  // namespace ew::trt
