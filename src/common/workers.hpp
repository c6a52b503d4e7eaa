#pragma once
#include <Kokkos_Core.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

#include "impl/Tributary_Operator.hpp"
#include "impl/Tributary_Require.hpp"

// Portable kernels are persistent: as many teams as the device runs at the same time, each with a slot of the workspace, and the
// work items dealt out to them in turn.  So the workspace depends on the machine, not on the size of the problem.

namespace Tributary::Impl {

/// May the reference level touch this space's memory?
template <class Exec>
inline constexpr bool host_memory = std::is_same_v<typename Exec::memory_space, Kokkos::HostSpace>;

/// Host spaces run teams of one thread and vectorise inside it; devices run teams of many threads.
#if defined(TRIBUTARY_TEST_DEVICE_PATH)
// A build for tests: what devices run, on a host's threads, since most machines that run the tests have no device.
template <class Exec>
inline constexpr bool on_host = false;
template <class Exec>
inline constexpr int team_size = 2;
template <class Exec>
inline constexpr int row_team_size = 2;
#else
template <class Exec>
inline constexpr bool on_host = host_memory<Exec>;
/// Threads of a persistent worker; of a team that has one short row to do.
template <class Exec>
inline constexpr int team_size = on_host<Exec> ? 1 : 128;
template <class Exec>
inline constexpr int row_team_size = on_host<Exec> ? 1 : 32;
#endif

/// A closure travels as the launch's parameter.  Without this hint, Kokkos sends one of 512 bytes or more through CUDA's constant
/// memory: such a launch waits for the one before, and cannot be captured in a graph.
using ClosureAsParameter = Kokkos::Experimental::WorkItemProperty::HintLightWeight_t;

template <class Exec>
using WorkerPolicy = Kokkos::TeamPolicy<Exec, Kokkos::LaunchBounds<static_cast<unsigned>(team_size<Exec>), 1>, ClosureAsParameter>;
/// A team a row.
template <class Exec>
using RowPolicy = Kokkos::TeamPolicy<Exec, ClosureAsParameter>;
/// A thread an element.
template <class Exec>
using ElementPolicy = Kokkos::RangePolicy<Exec, ClosureAsParameter>;

template <class Exec>
std::int64_t concurrent_workers(const Exec& exec) {
  // On devices a quarter of what fits by thread count: a thread keeps a block of accumulators in registers.
  const std::int64_t threads = exec.concurrency();
  return on_host<Exec> ? threads : std::max<std::int64_t>(1, threads / (8 * team_size<Exec>));
}

/// Which of its blocks, and of which pair of batch entry and head, an item is.  As many pairs as there are workers run side by side, a
/// pair's blocks one after another: so a worker meets the same keys or queries again while its cache still holds them.
struct ItemPlace {
  std::int64_t block, pair;

  KOKKOS_INLINE_FUNCTION static ItemPlace of(std::int64_t item, std::int64_t pairs, std::int64_t blocks, std::int64_t workers) {
    const std::int64_t first = item / (workers * blocks) * workers, rest = item - first * blocks;
    const std::int64_t side_by_side = pairs - first < workers ? pairs - first : workers;
    return {rest / side_by_side, first + rest % side_by_side};
  }
};

/// Hands out pieces of a workspace, or only counts their bytes when there is none yet.
class WorkspaceLayout {
 public:
  static constexpr std::size_t alignment = 128;

  explicit WorkspaceLayout(std::byte* base = nullptr) : base_(base) {}

  template <class T>
  T* take(std::int64_t count) {
    T* const piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(static_cast<std::size_t>(count) * sizeof(T));
    return piece;
  }
  /// Bytes taken, and enough to align a base that is not.
  std::size_t size() const { return used_ == 0 ? 0 : used_ + alignment; }

  static constexpr std::size_t round_up(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

 private:
  std::byte*  base_;
  std::size_t used_ = 0;
};

/// The aligned base of a workspace that was checked to be large enough.
inline std::byte* workspace_base(std::string_view function, const WorkspaceSpan& workspace, std::size_t needed) {
  require(workspace.size >= needed, "{}: the workspace has {} bytes, expected at least {}", function, workspace.size, needed);
  const auto address = reinterpret_cast<std::uintptr_t>(workspace.data);
  return workspace.data + (WorkspaceLayout::round_up(address) - address);
}

}  // namespace Tributary::Impl
