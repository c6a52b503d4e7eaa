#pragma once
#include "sm90/launch.cuh"

// Kernels of this level whose warps have roles of their own.

namespace Tributary::Impl::SM90 {

/// The functor around a kernel: `run(team, scratch, warp, lane)` is what a thread of it does, with as much scratch as `scratch_bytes()`
/// says.
template <class Kernel>
struct WarpRoles {
  Kernel kernel;

  __device__ void operator()(const Member& team) const {
    unsigned char* const scratch = aligned_scratch(team, kernel.scratch_bytes());
    const int            thread = thread_of_team(), warp = __shfl_sync(0xffffffffu, thread / 32, 0), lane = thread % 32;
    kernel.run(team, scratch, warp, lane);
    exit_thread();
  }
};

/// One team an SM at a time.
template <int Threads, class Kernel>
void launch_roles(const char* label, const Kokkos::Cuda& exec, int teams, const Kernel& kernel) {
  launch_teams<Threads, 1>(label, exec, teams, kernel.scratch_bytes(), WarpRoles<Kernel>{kernel});
}

}  // namespace Tributary::Impl::SM90
