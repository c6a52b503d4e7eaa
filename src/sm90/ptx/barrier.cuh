#pragma once

// Named barriers of a thread block, fences, and the division of the register file.

namespace Tributary::Impl::SM90::ptx {

__device__ inline void bar_sync(int barrier, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }

/// Whether any of the threads says yes.
__device__ inline bool bar_red_or(int barrier, int threads, bool yes) {
  int any;
  asm volatile(
      "{\n"
      ".reg .pred own, all;\n"
      "setp.ne.b32 own, %3, 0;\n"
      "bar.red.or.pred all, %1, %2, own;\n"
      "selp.b32 %0, 1, 0, all;\n"
      "}\n"
      : "=r"(any)
      : "r"(barrier), "r"(threads), "r"(static_cast<int>(yes))
      : "memory");
  return any != 0;
}

__device__ inline void bar_arrive(int barrier, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory"); }

/// Before the copy engine or a wgmma touches shared memory that ordinary instructions wrote or read.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// The same for device memory.
__device__ inline void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

template <int Registers>
__device__ inline void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ inline void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace Tributary::Impl::SM90::ptx
