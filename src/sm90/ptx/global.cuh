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

/// Adds; what is before it in this thread, and what that has seen of others, can be seen by whoever adds later, and the other way round.
__device__ inline std::int32_t atom_add_acq_rel(std::int32_t* to, std::int32_t value) {
  std::int32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;" : "=r"(before) : "l"(to), "r"(value) : "memory");
  return before;
}

/// Sixteen bytes that nobody writes and that are read once: no copy in the first-level cache.
__device__ inline void ld_once(unsigned (&words)[4], const void* from) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(from));
}

/// Asks for the line to come to the second-level cache.
__device__ inline void prefetch_l2(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

}  // namespace Tributary::Impl::SM90::ptx
