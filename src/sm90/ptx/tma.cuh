#pragma once
#include <cuda.h>

#include <cstdint>

#include "sm90/ptx/mbarrier.cuh"

// The copy engine: boxes of a tensor in device memory to shared memory.

namespace Tributary::Impl::SM90::ptx {

/// Before the first use of a tensor map that a kernel wrote to device memory.
__device__ inline void fence_proxy_tensormap(const CUtensorMap* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}

__device__ inline void cp_async_bulk_tensor(void* to, const CUtensorMap* map, std::uint64_t* barrier, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
               : "memory");
}

__device__ inline void cp_async_bulk_tensor(void* to, const CUtensorMap* map, std::uint64_t* barrier, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
                   shared_address(to)),
               "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}

}  // namespace Tributary::Impl::SM90::ptx
