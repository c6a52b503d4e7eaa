#pragma once
#include <cstdint>

// Device memory: loads and stores that order what is around them, seen by the whole device; addresses.

namespace Tributary::Impl::SM90::ptx {

__device__ inline std::int32_t ld_acquire(const std::int32_t* from) {
  std::int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

__device__ inline void st_release(std::int32_t* to, std::int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

/// An address that is worked out here, and kept, not again wherever it is used.
template <class Value>
__device__ inline void keep(Value*& address) {
  asm volatile("" : "+l"(address));
}

}  // namespace Tributary::Impl::SM90::ptx
