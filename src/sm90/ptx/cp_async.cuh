#pragma once
#include <cstdint>

#include "sm90/ptx/mbarrier.cuh"

// Copies from device to shared memory that no register holds.

namespace Tributary::Impl::SM90::ptx {

/// 16 bytes; zeros where `real` is false: then nothing is read.
__device__ inline void cp_async(std::uint32_t to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}

/// The same of 4 bytes.
__device__ inline void cp_async_4(void* to, const void* from, bool real) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(real ? 4 : 0) : "memory");
}

/// Waits until all copies of this thread have been written.
__device__ inline void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Arrives once all copies of this thread so far have been written.
__device__ inline void cp_async_mbarrier_arrive(std::uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

}  // namespace Tributary::Impl::SM90::ptx
