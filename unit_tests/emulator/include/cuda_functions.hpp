#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "instructions.hpp"

// What CUDA C++ knows without a header, as far as the kernels use it.

#define __device__
#define __host__
#define __forceinline__
#define __noinline__

struct float2 {
  float x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x = 0, y = 0, z = 0, w = 0;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4  make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline int      max(int a, int b) { return a > b ? a : b; }
inline int      min(int a, int b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline int      __clz(int bits) { return std::countl_zero(static_cast<std::uint32_t>(bits)); }
inline int      __clzll(long long bits) { return std::countl_zero(static_cast<std::uint64_t>(bits)); }

inline unsigned __brev(unsigned bits) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (bits >> i & 1u) << (31 - i);
  return reversed;
}

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __ffs(int bits) { return bits == 0 ? 0 : 1 + std::countr_zero(static_cast<std::uint32_t>(bits)); }

inline float    __int_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float    __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int      __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float    __fdividef(float a, float b) { return a / b; }
inline float    __fmul_rn(float a, float b) { return a * b; }
inline float    __fsub_rn(float a, float b) { return a - b; }

inline int __float2int_rz(float x) {
  if (x >= 0x1p31f) return 0x7fffffff;
  if (x < -0x1p31f) return -0x7fffffff - 1;
  return x == x ? static_cast<int>(x) : 0;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}

inline void     __syncwarp() { TributaryTest::Emulator::syncwarp(); }
inline void     __syncthreads() { TributaryTest::Emulator::syncthreads(); }
inline void     __threadfence() { TributaryTest::Emulator::thread_fence(); }
inline void     __threadfence_block() { TributaryTest::Emulator::thread_fence(); }
inline void     __nanosleep(unsigned) { TributaryTest::Emulator::nanosleep(); }
inline bool     __any_sync(unsigned, bool value) { return TributaryTest::Emulator::any(value); }
inline unsigned __ballot_sync(unsigned, bool value) { return TributaryTest::Emulator::ballot(value); }

// Numbers as collectives and atomic operations carry them.
template <class T>
std::uint64_t tributary_bits(T value) {
  if constexpr (sizeof(T) == 8)
    return std::bit_cast<std::uint64_t>(value);
  else
    return std::bit_cast<std::uint32_t>(value);
}
template <class T>
T tributary_number(std::uint64_t bits) {
  if constexpr (sizeof(T) == 8)
    return std::bit_cast<T>(bits);
  else
    return std::bit_cast<T>(static_cast<std::uint32_t>(bits));
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return tributary_number<T>(TributaryTest::Emulator::shuffle(tributary_bits(value), lane));
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return tributary_number<T>(TributaryTest::Emulator::shuffle_xor(tributary_bits(value), mask));
}
template <class T>
T __shfl_up_sync(unsigned, T value, int distance) {
  return tributary_number<T>(TributaryTest::Emulator::shuffle_up(tributary_bits(value), distance));
}

template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  return tributary_number<T>(TributaryTest::Emulator::shuffle_down(tributary_bits(value), distance));
}

// Of numbers with and without sign: with the sign turned, both have the order of the latter.
template <class T>
T __reduce_max_sync(unsigned, T value) {
  constexpr std::uint32_t sign = std::is_signed_v<T> ? 0x80000000u : 0u;
  return static_cast<T>(TributaryTest::Emulator::reduce_max(static_cast<std::uint32_t>(value) ^ sign) ^ sign);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  return static_cast<T>(~__reduce_max_sync(mask, static_cast<T>(~value)));
}

template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  for (int distance = 1; distance < 32; distance *= 2) value += __shfl_xor_sync(mask, value, distance);
  return value;
}

template <class T>
T tributary_atomic(TributaryTest::Emulator::Atomic operation, T* at, T value, T expected = T{}) {
  return tributary_number<T>(TributaryTest::Emulator::atomic(operation, at, sizeof(T), tributary_bits(value), tributary_bits(expected)));
}
template <class T>
T atomicAdd(T* at, T value) {
  return tributary_atomic(TributaryTest::Emulator::Atomic::add, at, value);
}
template <class T>
T atomicSub(T* at, T value) {
  return tributary_atomic(TributaryTest::Emulator::Atomic::add, at, static_cast<T>(T{0} - value));
}
template <class T>
T atomicOr(T* at, T value) {
  return tributary_atomic(TributaryTest::Emulator::Atomic::bit_or, at, value);
}
inline unsigned long long atomicExch(unsigned long long* at, unsigned long long value) {
  return tributary_atomic(TributaryTest::Emulator::Atomic::exchange, at, value);
}
inline std::uint32_t atomicCAS(std::uint32_t* at, std::uint32_t expected, std::uint32_t value) {
  return tributary_atomic(TributaryTest::Emulator::Atomic::compare_and_swap, at, value, expected);
}
inline unsigned long long atomicCAS(unsigned long long* at, unsigned long long expected, unsigned long long value) {
  return tributary_atomic(TributaryTest::Emulator::Atomic::compare_and_swap, at, value, expected);
}

// Teams are warps of 32 vector lanes.
struct TributaryThreadIndex {
  struct Lane {
    operator unsigned() const { return static_cast<unsigned>(TributaryTest::Emulator::thread_of_team()) % 32; }
  } x;
  struct Warp {
    operator unsigned() const { return static_cast<unsigned>(TributaryTest::Emulator::thread_of_team()) / 32; }
  } y;
};
inline constexpr TributaryThreadIndex threadIdx;
