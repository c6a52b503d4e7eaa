#pragma once
#include <Kokkos_Core.hpp>
#include <algorithm>
#include <cstddef>
#include <vector>

namespace Tributary::Benchmark {

/// The median time of a call up to its fence, over a second's repetitions.
template <class Exec, class Call>
double median_seconds(const Exec& exec, const Call& call) {
  constexpr std::size_t least_runs = 3;
  call();
  exec.fence("Tributary benchmark: warm");
  std::vector<double> seconds;
  for (const Kokkos::Timer total; seconds.size() < least_runs || total.seconds() < 1;) {
    const Kokkos::Timer timer;
    call();
    exec.fence("Tributary benchmark: time");
    seconds.push_back(timer.seconds());
  }
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle;
}

}  // namespace Tributary::Benchmark
