#pragma once
#include <string>

// What the machine itself does, measured in the same process as the benchmarks: the ceilings that their results are fractions of.

namespace Tributary::Benchmark {

/// Flop a second of a single-precision product of two 2048 x 2048 matrices, KokkosBlas::gemm with as many threads as `exec` has;
/// the median of a second's repetitions, measured at the first call.
template <class Exec>
double sgemm_rate(const Exec& exec);

/// Bytes a second, read and written, of a copy of 256 MiB, of 4 GiB on a device; likewise.
template <class Exec>
double copy_rate(const Exec& exec);

/// Who computes KokkosBlas::gemm in this build.
std::string sgemm_name();

}  // namespace Tributary::Benchmark
