#pragma once
#include <Kokkos_Core.hpp>
#include <cstddef>
#include <cstdint>

// The ceiling of what reads a lot and writes next to nothing.

namespace Tributary::Benchmark {

#ifdef KOKKOS_ENABLE_CUDA

/// Folds every 16 bytes of an array into one number a thread, as fast as the device reads: several loads of a thread are on their way at a
/// time.  The result is written only if it is a number that random data do not give, so nothing is.
struct ReadOnlyReduction {
  const int4*  words;
  std::int64_t count, threads;
  int*         never;

  KOKKOS_FUNCTION void operator()(std::int64_t thread) const {
    constexpr int loads  = 8;
    int           folded = 0;
    const auto    fold   = [&](const int4& word) { folded ^= word.x ^ word.y ^ word.z ^ word.w; };
    std::int64_t  i      = thread;
    for (; i + (loads - 1) * threads < count; i += loads * threads) {
      int4 word[loads];
      for (int n = 0; n < loads; ++n) word[n] = words[i + n * threads];
      for (int n = 0; n < loads; ++n) fold(word[n]);
    }
    for (; i < count; i += threads) fold(words[i]);
    if (folded == 0x7eadbeef) *never = folded;
  }
};

/// Queues a read of that many bytes, from a multiple of 16.
inline void read_only_reduction(const Kokkos::Cuda& exec, const void* from, std::size_t bytes, int* never) {
  const std::int64_t threads = exec.concurrency();
  Kokkos::parallel_for("read", Kokkos::RangePolicy<Kokkos::Cuda, Kokkos::IndexType<std::int64_t>>(exec, 0, threads),
                       ReadOnlyReduction{static_cast<const int4*>(from), static_cast<std::int64_t>(bytes / 16), threads, never});
}

#endif

}  // namespace Tributary::Benchmark
