#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <vector>

// What problems for kernels under the emulator are made of.

namespace TributaryTest::Emulator {

/// The seed of random shapes and data: TRIBUTARY_TEST_SEED, or always the same one.
inline std::uint32_t test_seed() {
  const char* const text = std::getenv("TRIBUTARY_TEST_SEED");
  return text == nullptr ? 20240607u : static_cast<std::uint32_t>(std::strtoul(text, nullptr, 10));
}

class Random {
 public:
  explicit Random(std::uint64_t stream) : engine_(test_seed() * 0x9e3779b97f4a7c15u + stream) {}

  template <class T = int>
  T below(std::int64_t count) {
    return static_cast<T>(engine_() % static_cast<std::uint64_t>(count));
  }
  bool   one_in(int count) { return below(count) == 0; }
  double uniform() { return std::uniform_real_distribution<double>()(engine_); }
  float  normal() { return std::normal_distribution<float>()(engine_); }
  template <class T>
  T any_of(const std::vector<T>& choices) {
    return choices[below<std::size_t>(static_cast<std::int64_t>(choices.size()))];
  }

 private:
  std::mt19937_64 engine_;
};

/// Elements between two pages that nothing may touch; the end meets the second one, up to an alignment of 16.
template <class T>
class GuardedArray {
 public:
  explicit GuardedArray(std::int64_t count = 0) : size_(static_cast<std::size_t>(count)) {
    const std::size_t bytes = (size_ * sizeof(T) + 15) / 16 * 16, pages = (bytes + page - 1) / page * page;
    mapped_ = pages + 2 * page;
    region_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (region_ == MAP_FAILED || mprotect(region_, page, PROT_NONE) != 0 || mprotect(region_ + page + pages, page, PROT_NONE) != 0)
      throw std::bad_alloc();
    data_ = reinterpret_cast<T*>(region_ + page + pages - bytes);
  }
  GuardedArray(const GuardedArray&)            = delete;
  GuardedArray& operator=(const GuardedArray&) = delete;
  ~GuardedArray() { munmap(region_, mapped_); }

  T* data() const { return data_; }
  T* begin() const { return data_; }
  T* end() const { return data_ + size_; }
  T& operator[](std::int64_t i) const { return data_[i]; }

 private:
  static constexpr std::size_t page = 4096;

  std::size_t size_, mapped_;
  char*       region_;
  T*          data_;
};

/// The same for elements of 1 or 2 bytes each.
class ElementArray {
 public:
  ElementArray(bool single_bytes, std::int64_t count) : size_(count), bytes_(single_bytes ? 1 : 2), array_(bytes_ * count) {}

  std::uint8_t* data() const { return array_.data(); }
  std::int64_t  size() const { return size_; }

  std::uint16_t bits(std::int64_t i) const {
    std::uint16_t bits = 0;
    std::memcpy(&bits, data() + bytes_ * i, static_cast<std::size_t>(bytes_));
    return bits;
  }
  void set_bits(std::int64_t i, std::uint16_t bits) const { std::memcpy(data() + bytes_ * i, &bits, static_cast<std::size_t>(bytes_)); }

 private:
  std::int64_t               size_, bytes_;
  GuardedArray<std::uint8_t> array_;
};

}  // namespace TributaryTest::Emulator
