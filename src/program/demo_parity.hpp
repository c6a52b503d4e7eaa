#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <string>

namespace Tributary::Program {

/// What the demo computed, in host memory, with a batch of one.
struct DemoResult {
  using Floats3 = Kokkos::View<float***, Kokkos::LayoutRight, Kokkos::HostSpace>;
  Kokkos::View<float****, Kokkos::LayoutRight, Kokkos::HostSpace>       query;
  Floats3                                                               key, weights;
  Kokkos::View<std::int32_t***, Kokkos::LayoutRight, Kokkos::HostSpace> indices;
  Floats3                                                               scores;
  std::int32_t                                                          ratio;
};

struct Parity {
  std::int64_t rows = 0, failed_rows = 0;
  double       largest_bound = 0;  ///< of a score's error, e
  double       largest_error = 0;  ///< of a score that came out
  std::string  first_failure;
};

/// Compares about `rows` rows, spread over all, with the reference.  With e the bound of a score's error in float arithmetic, every
/// chosen key's reference score must be >= the k-th best reference score - 2e, every key with a reference score > the k-th + 2e
/// must be chosen, and every score that came out must be within e.
Parity check_parity(const DemoResult&, std::int64_t rows);

}  // namespace Tributary::Program
