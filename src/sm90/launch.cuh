#pragma once
#include <Kokkos_Core.hpp>
#include <mutex>

// How a kernel of this level starts: a functor over a TeamPolicy on the caller's instance, with more than 48 KiB of team scratch.

namespace Tributary::Impl::SM90 {

/// `Threads` a team as warps of 32 vector lanes, `TeamsPerSM` of them resident: this fixes the registers a thread starts with.  The
/// hint passes the closure as a kernel parameter, whatever its size: constant memory would wait for the launch before.
template <int Threads, int TeamsPerSM>
using Policy =
    Kokkos::TeamPolicy<Kokkos::Cuda, Kokkos::LaunchBounds<Threads, TeamsPerSM>, Kokkos::Experimental::WorkItemProperty::HintLightWeight_t>;

using Member = Kokkos::TeamPolicy<Kokkos::Cuda>::member_type;

/// Team scratch that a team of so many warps can have: 227 KiB less what Kokkos and CUDA keep of it.
constexpr int largest_scratch(int warps) { return 232448 - 16 - 8 * (warps + 2); }

/// The thread's number in its team.
__device__ inline int thread_of_team() { return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); }

/// The team's scratch, aligned to 1024 bytes as the copy engine's swizzle wants it; the launch asks for so many bytes more.
constexpr int                    scratch_alignment = 1024;
__device__ inline unsigned char* aligned_scratch(const Member& team, int bytes) {
  return static_cast<unsigned char*>(team.team_scratch(0).get_shmem_aligned(static_cast<size_t>(bytes), scratch_alignment));
}

/// Ends the thread.  Without it the loop around a functor's body, in which Kokkos walks the league, keeps registers alive (3 to 18 % of the
/// time).  Right because the grid is as large as the league and no scratch of level 1 is in use.
__device__ inline void exit_thread() { asm volatile("exit;"); }

#if KOKKOS_VERSION < 50000
/// Held while the limit below, which all host threads share, is raised: until the kernel is launched, callbacks of Kokkos Tools included.
inline std::mutex& scratch_limit_mutex() {
  static std::mutex mutex;
  return mutex;
}

/// Kokkos 4 limits team scratch to the 48 KiB that need no opting in (kokkos issue 4093).  This opts one kernel in, and while it lives
/// Kokkos sees the larger limit.
template <class Functor, class TeamPolicy>
class LargeScratch {
 public:
  LargeScratch()
      : lock_(scratch_limit_mutex()), properties_(Kokkos::Impl::CudaInternal::m_deviceProp), before_(properties_.sharedMemPerBlock) {
    using Closure             = Kokkos::Impl::ParallelFor<Functor, TeamPolicy, Kokkos::Cuda>;
    const auto         kernel = Kokkos::Impl::CudaParallelLaunch<Closure, typename TeamPolicy::launch_bounds>::get_kernel_func();
    cudaFuncAttributes attributes;
    KOKKOS_IMPL_CUDA_SAFE_CALL(cudaFuncGetAttributes(&attributes, kernel));
    KOKKOS_IMPL_CUDA_SAFE_CALL(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(properties_.sharedMemPerBlockOptin - attributes.sharedSizeBytes)));
    properties_.sharedMemPerBlock = properties_.sharedMemPerBlockOptin;
  }
  ~LargeScratch() { properties_.sharedMemPerBlock = before_; }
  LargeScratch(const LargeScratch&)            = delete;
  LargeScratch& operator=(const LargeScratch&) = delete;

 private:
  std::lock_guard<std::mutex> lock_;
  cudaDeviceProp&             properties_;
  const size_t                before_;
};
#else
template <class Functor, class TeamPolicy>
struct LargeScratch {};
#endif

/// \tparam FewerTeams  resident on an SM where the scratch does not fit TeamsPerSM times; 0 where it always does
/// \param teams  the league; at least 1
template <int Threads, int TeamsPerSM, int FewerTeams = (TeamsPerSM > 1 ? 1 : 0), class Functor>
void launch_teams(const char* label, const Kokkos::Cuda& exec, int teams, int scratch_bytes, const Functor& functor) {
  if constexpr (FewerTeams > 0) {
    // Kokkos refuses a launch whose scratch does not fit so many times into an SM's 228 KiB, of which CUDA keeps 1 KiB a team.
    const int a_team = scratch_bytes + scratch_alignment + 16 + 8 * (Threads / 32 + 2) + 1024;
    if (TeamsPerSM * a_team > 228 * 1024) return launch_teams<Threads, FewerTeams, 0>(label, exec, teams, scratch_bytes, functor);
  }
  using TeamPolicy = Policy<Threads, TeamsPerSM>;
  [[maybe_unused]] const LargeScratch<Functor, TeamPolicy> large_scratch;
  Kokkos::parallel_for(
      label, TeamPolicy(exec, teams, Threads / 32, 32).set_scratch_size(0, Kokkos::PerTeam(scratch_bytes + scratch_alignment)), functor);
}

}  // namespace Tributary::Impl::SM90
