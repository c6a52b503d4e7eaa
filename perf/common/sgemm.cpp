#include <KokkosKernels_config.h>
#include <KokkosBlas3_gemm.hpp>
#include <Kokkos_Core.hpp>

#include "common/machine.hpp"
#include "common/median.hpp"
#include "common/random.hpp"

// OpenBLAS, where KokkosBlas::gemm leads to it, keeps its own number of threads.
extern "C" {
[[gnu::weak]] void  openblas_set_num_threads(int);
[[gnu::weak]] char* openblas_get_config();
}

namespace Tributary::Benchmark {

namespace {

template <class Exec>
double measure_sgemm(const Exec& exec) {
  constexpr std::size_t n = 2048;
  // KokkosBlas::gemm leads to BLAS only where the Views name the execution space.
  using Matrix   = Kokkos::View<float**, Kokkos::LayoutRight, Kokkos::Device<Exec, Kokkos::HostSpace>>;
  const Matrix a = random<float**>("a", 1, n, n), b = random<float**>("b", 2, n, n), c = random<float**>("c", 3, n, n);
  if (openblas_set_num_threads != nullptr) openblas_set_num_threads(exec.concurrency());
  return 2.0 * n * n * n / median_seconds(exec, [&] { KokkosBlas::gemm(exec, "N", "N", 1.0f, a, b, 0.0f, c); });
}

}  // namespace

template <class Exec>
double sgemm_rate(const Exec& exec) {
  static const double rate = measure_sgemm(exec);
  return rate;
}

std::string sgemm_name() {
#ifdef KOKKOSKERNELS_ENABLE_TPL_BLAS
  return openblas_get_config != nullptr ? openblas_get_config() : "the BLAS that Kokkos Kernels was built with";
#else
  return "Kokkos Kernels' own loops, no BLAS library: fractions of it say little";
#endif
}

#ifdef KOKKOS_ENABLE_SERIAL
template double sgemm_rate(const Kokkos::Serial&);
#endif
#ifdef KOKKOS_ENABLE_OPENMP
template double sgemm_rate(const Kokkos::OpenMP&);
#endif
#ifdef KOKKOS_ENABLE_THREADS
template double sgemm_rate(const Kokkos::Threads&);
#endif

}  // namespace Tributary::Benchmark
