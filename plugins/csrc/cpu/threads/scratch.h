// Scratch memory that outlives a call, so that later calls of the same size allocate nothing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace ew {

// Cache-line aligned floats; grows, never shrinks, does not keep its contents when it grows.
class FloatBuffer {
 public:
  FloatBuffer() = default;
  FloatBuffer(const FloatBuffer&) = delete;
  FloatBuffer& operator=(const FloatBuffer&) = delete;
  ~FloatBuffer() { std::free(data_); }

  // At least `size` floats. Throws std::bad_alloc.
  float* reserve(std::size_t size) {
    if (size > size_) {
      std::free(data_);
      size_ = 0;
      const std::size_t lines = (size * sizeof(float) + kLine - 1) / kLine;
      data_ = static_cast<float*>(std::aligned_alloc(kLine, lines * kLine));
      if (!data_) throw std::bad_alloc();
      size_ = size;
    }
    return data_;
  }

 private:
  static constexpr std::size_t kLine = 64;
  float* data_ = nullptr;
  std::size_t size_ = 0;
};

// Lends objects to concurrent borrowers and keeps them for the next ones.
template <class T>
class Pool {
 public:
  class Loan {
   public:
    explicit Loan(Pool& pool) : pool_(pool), item_(pool.take()) {}
    ~Loan() { pool_.put_back(std::move(item_)); }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;
    T& operator*() const { return *item_; }
    T* operator->() const { return item_.get(); }

   private:
    Pool& pool_;
    std::unique_ptr<T> item_;
  };

 private:
  std::unique_ptr<T> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) {
      idle_.reserve(++made_);  // so that put_back, which runs in destructors, cannot throw
      return std::make_unique<T>();
    }
    std::unique_ptr<T> item = std::move(idle_.back());
    idle_.pop_back();
    return item;
  }

  void put_back(std::unique_ptr<T> item) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(item));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> idle_;
  std::size_t made_ = 0;
};

}  // namespace ew
