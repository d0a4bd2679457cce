#include "hosts/tensorrt/report.h"

#include <atomic>
#include <cstdio>

namespace ew::trt {
namespace {

constexpr std::size_t kLongestMessage = 1024;
thread_local char message_of_thread[kLongestMessage] = "";
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

// TensorRT's own function; nothing says that it does not throw.
nvinfer1::ILogger* find_logger() noexcept {
  nvinfer1::ILoggerFinder* finder = logger_finder;
  if (finder == nullptr) return nullptr;
  try {
    return finder->findLogger();
  } catch (...) {
    return nullptr;
  }
}

}  // namespace

void report(const char* op, const char* message, nvinfer1::IErrorRecorder* recorder) noexcept {
  // no allocation: this may be about a failed one
  std::snprintf(message_of_thread, kLongestMessage, "%s: %s", op, message);
  if (recorder != nullptr) recorder->reportError(nvinfer1::ErrorCode::kINVALID_ARGUMENT, message_of_thread);
  nvinfer1::ILogger* logger = find_logger();
  if (logger != nullptr) logger->log(nvinfer1::ILogger::Severity::kERROR, message_of_thread);
}

const char* last_error() noexcept { return message_of_thread; }

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

}  // namespace ew::trt
