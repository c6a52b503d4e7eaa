#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cuda_functions.hpp"

// As much of Kokkos as the library's headers and the kernels' sources name.  Kernels that are no teams of the emulator run at once, one
// thread a team.

#define KOKKOS_FUNCTION
#define KOKKOS_INLINE_FUNCTION inline
#define KOKKOS_FORCEINLINE_FUNCTION inline
#define TRIBUTARY_WITHOUT_PARENTHESES(...) __VA_ARGS__
#define KOKKOS_IF_ON_DEVICE(CODE) TRIBUTARY_WITHOUT_PARENTHESES CODE
#define KOKKOS_IF_ON_HOST(CODE)

namespace TributaryTest::Emulator {
int processors();  // of the emulated device
}

namespace Kokkos {

using std::bit_cast;
using std::cos;
using std::exp;
using std::log;
using std::pow;
using std::sin;
using std::tanh;

struct HostSpace {};
struct CudaSpace {};
struct LayoutLeft {};
struct LayoutRight {};

struct Cuda {
  struct Properties {
    int multiProcessorCount;
  };
  using memory_space = CudaSpace;

  int                cuda_device() const { return 0; }
  Properties         cuda_device_prop() const { return {TributaryTest::Emulator::processors()}; }
  int                concurrency() const { return 1; }
  static const char* name() { return "Cuda"; }
};
struct DefaultHostExecutionSpace {};
using DefaultExecutionSpace = Cuda;

template <class...>
struct SpaceAccessibility {
  static constexpr bool accessible = true;
};
template <class>
inline constexpr bool is_view_v = false;
template <class>
inline constexpr bool is_execution_space_v = true;
template <class...>
struct View {
  View(...) {}
};
struct WithoutInitializing_t {};
inline constexpr WithoutInitializing_t WithoutInitializing;
template <class... Arguments>
int view_alloc(const Arguments&...) {
  return 0;
}

template <unsigned, unsigned>
struct LaunchBounds {};
struct RowMember {
  int rank;
  int league_rank() const { return rank; }
};
template <class...>
struct TeamPolicy {
  using member_type = RowMember;
  int league;

  template <class Exec, class... Arguments>
  TeamPolicy(const Exec&, int league_size, const Arguments&...) : league(league_size) {}
};
template <class>
struct IndexType {};
template <class...>
struct RangePolicy {
  std::int64_t begin, end;

  template <class Exec>
  RangePolicy(const Exec&, std::int64_t from, std::int64_t to) : begin(from), end(to) {}
};
struct ThreadRange {
  std::int64_t count;
};
struct Once {};
template <class Member>
ThreadRange TeamThreadRange(const Member&, std::int64_t count) {
  return {count};
}
template <class Member>
ThreadRange ThreadVectorRange(const Member&, std::int64_t count) {
  return {count};
}
template <class Member>
Once PerTeam(const Member&) {
  return {};
}
template <class Function>
void single(const Once&, const Function& function) {
  function();
}
template <class Function>
void parallel_for(const ThreadRange& range, const Function& function) {
  for (std::int64_t i = 0; i < range.count; ++i) function(static_cast<std::int32_t>(i));
}
template <class T>
void atomic_add(T* to, T value) {
  *to += value;
}
template <class... Arguments, class Function>
void parallel_for(const char*, const RangePolicy<Arguments...>& range, const Function& function) {
  for (std::int64_t i = range.begin; i < range.end; ++i) function(static_cast<int>(i));
}
template <class... Arguments, class Function>
void parallel_for(const char*, const TeamPolicy<Arguments...>& policy, const Function& function) {
  for (int team = 0; team < policy.league; ++team) function(RowMember{team});
}

namespace Experimental {
struct WorkItemProperty {
  struct HintLightWeight_t {};
};
template <class T>
inline constexpr T infinity_v = std::numeric_limits<T>::infinity();
template <class T>
inline constexpr T finite_max_v = std::numeric_limits<T>::max();
}  // namespace Experimental

}  // namespace Kokkos
