#pragma once
#include <cstdint>

#include "sm90/ptx/barrier.cuh"

// Threads that work on one row together, a warp or a whole team, and what they ask each other.  Teams are warps of 32 vector lanes, so that
// threadIdx.x is the lane and threadIdx.y the warp.

namespace Tributary::Impl::SM90 {

constexpr unsigned full_warp = 0xffffffffu;

template <int Threads>
struct Group {
  static_assert(Threads % 32 == 0 && Threads <= 1024);
  static constexpr int threads = Threads, warps = Threads / 32;

  /// Words of shared memory that the sums and extremes of several warps pass through.
  struct alignas(16) Exchange {
    uint4 extremes[warps];
    int   sums[warps];
  };

  __device__ static int lane() { return static_cast<int>(threadIdx.x); }
  __device__ static int warp() { return warps == 1 ? 0 : static_cast<int>(threadIdx.y); }
  __device__ static int rank() { return warp() * 32 + lane(); }

  __device__ static void sync() {
    if constexpr (warps == 1)
      __syncwarp();
    else
      ptx::bar_sync(0, Threads);  // of these threads: there may be other ones
  }

  /// A barrier that also tells every thread whether any has said yes.
  __device__ static bool any(bool yes) {
    if constexpr (warps == 1) {
      __syncwarp();
      return __any_sync(full_warp, yes) != 0;
    } else {
      return ptx::bar_red_or(0, Threads, yes);
    }
  }

  /// The least x and z and the largest y and w of all threads.  A barrier must lie between two calls.
  __device__ static uint4 extremes(Exchange& exchange, uint4 own) {
    own = extremes_of_warp(own);
    if constexpr (warps == 1) return own;
    if (lane() == 0) exchange.extremes[warp()] = own;
    sync();
    return extremes_of_warp(exchange.extremes[lane() % warps]);
  }

  /// The sum over the threads of lower rank.  A barrier must lie between two calls.
  __device__ static int exclusive_sum(Exchange& exchange, int own) {
    int inclusive = inclusive_sum_of_warp(own);
    if constexpr (warps == 1) return inclusive - own;
    if (lane() == 31) exchange.sums[warp()] = inclusive;
    sync();
    const int before = lane() < warp() ? exchange.sums[lane()] : 0;
    return __reduce_add_sync(full_warp, before) + inclusive - own;
  }

  __device__ static int inclusive_sum_of_warp(int own) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int before = __shfl_up_sync(full_warp, own, distance);
      if (lane() >= distance) own += before;
    }
    return own;
  }

 private:
  __device__ static uint4 extremes_of_warp(const uint4& own) {
    return {__reduce_min_sync(full_warp, own.x), __reduce_max_sync(full_warp, own.y), __reduce_min_sync(full_warp, own.z),
            __reduce_max_sync(full_warp, own.w)};
  }
};

}  // namespace Tributary::Impl::SM90
