#pragma once
#include <bit>
#include <cstdint>

#include "instructions.hpp"

// What CUDA C++ knows without a header, as far as the kernels use it.

#define __device__
#define __host__

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x = 0, y = 0, z = 0, w = 0;
};

inline int   max(int a, int b) { return a > b ? a : b; }
inline int   min(int a, int b) { return a < b ? a : b; }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }

inline void __syncwarp() { TributaryTest::Emulator::syncwarp(); }
inline void __syncthreads() { TributaryTest::Emulator::syncthreads(); }
inline void __nanosleep(unsigned) { TributaryTest::Emulator::nanosleep(); }
inline bool __any_sync(unsigned, bool value) { return TributaryTest::Emulator::any(value); }

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return std::bit_cast<T>(TributaryTest::Emulator::shuffle(std::bit_cast<std::uint32_t>(value), lane));
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return std::bit_cast<T>(TributaryTest::Emulator::shuffle_xor(std::bit_cast<std::uint32_t>(value), mask));
}

inline std::int32_t atomicAdd(std::int32_t* to, std::int32_t value) {
  const std::int32_t before = *to;
  *to += value;
  return before;
}
