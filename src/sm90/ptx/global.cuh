#pragma once
#include <cstdint>

// Device memory: loads and stores that order what is around them, seen by the whole device, and prefetching.

namespace Tributary::Impl::SM90::ptx {

__device__ inline std::int32_t ld_acquire(const std::int32_t* from) {
  std::int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ inline void st_release(std::int32_t* to, std::int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

/// Asks for the line to come to the second-level cache.
__device__ inline void prefetch_l2(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

}  // namespace Tributary::Impl::SM90::ptx
