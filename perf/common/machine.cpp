#include "common/machine.hpp"

#include <Kokkos_Core.hpp>
#include <cstddef>
#include <type_traits>

#include "common/median.hpp"
#include "common/random.hpp"
#include "common/workers.hpp"

namespace Tributary::Benchmark {

namespace {

/// Who fills the memory of a space: all of the host's threads, if it is the host's.
template <class Exec>
using FillSpace = std::conditional_t<Impl::host_memory<Exec>, Kokkos::DefaultHostExecutionSpace, Exec>;

/// On a device the time of a launch and a fence must not count.
template <class Exec>
constexpr std::size_t copy_bytes = std::size_t{Impl::host_memory<Exec> ? 256 : 4096} << 20;

template <class Exec>
double measure_copy(const Exec& exec) {
  constexpr std::size_t count = copy_bytes<Exec> / sizeof(float);
  const auto            from = random<float*, FillSpace<Exec>>("from", 1, count), to = random<float*, FillSpace<Exec>>("to", 2, count);
  return 2.0 * sizeof(float) * count / median_seconds(exec, [&] { Kokkos::deep_copy(exec, to, from); });
}

}  // namespace

template <class Exec>
double copy_rate(const Exec& exec) {
  static const double rate = measure_copy(exec);
  return rate;
}

#ifdef KOKKOS_ENABLE_SERIAL
template double copy_rate(const Kokkos::Serial&);
#endif
#ifdef KOKKOS_ENABLE_OPENMP
template double copy_rate(const Kokkos::OpenMP&);
#endif
#ifdef KOKKOS_ENABLE_THREADS
template double copy_rate(const Kokkos::Threads&);
#endif
#ifdef KOKKOS_ENABLE_CUDA
template double copy_rate(const Kokkos::Cuda&);
#endif

}  // namespace Tributary::Benchmark
