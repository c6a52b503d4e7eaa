#pragma once
#include <cuda.h>

#include "sm90/ptx/mbarrier.cuh"

namespace Tributary::Impl::SM90::ptx {

using TributaryTest::Emulator::cp_async_bulk_commit_group;
using TributaryTest::Emulator::cp_async_bulk_tensor;

inline std::uint64_t createpolicy_evict_first() { return 0; }
inline void          cp_async_bulk_tensor(void* to, const CUtensorMap* map, std::uint64_t* barrier, int x, int y, int z, std::uint64_t) {
           cp_async_bulk_tensor(to, map, barrier, x, y, z);
}
inline void fence_proxy_tensormap(const CUtensorMap*) {}
inline void cp_async_bulk_prefetch_tensor(const CUtensorMap*, int, int, int, int) {}
inline void cp_async_bulk(void* to, const void* from, int bytes) {
  TributaryTest::Emulator::cp_async_bulk(static_cast<float*>(to), static_cast<const float*>(from), bytes, false);
}
inline void cp_async_bulk(void* to, const void* from, int bytes, std::uint64_t* barrier) {
  TributaryTest::Emulator::cp_async_bulk(to, from, bytes, barrier);
}
inline void cp_reduce_async_bulk_add(float* to, const float* from, int bytes) {
  TributaryTest::Emulator::cp_async_bulk(to, from, bytes, true);
}
inline void cp_async_bulk_wait_read() { TributaryTest::Emulator::cp_async_bulk_wait(true); }
inline void cp_async_bulk_wait() { TributaryTest::Emulator::cp_async_bulk_wait(false); }

}  // namespace Tributary::Impl::SM90::ptx
