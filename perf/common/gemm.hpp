#pragma once
#include <Tributary_Types.hpp>

#include <Kokkos_Core.hpp>
#include <memory>

// What a CUDA device's tensor cores do in the vendor's library: the ceiling of the operators that multiply.

namespace Tributary::Benchmark {

#ifdef KOKKOS_ENABLE_CUDA

/// cuBLASLt's product of two 8192 x 8192 matrices of random numbers, accumulated in float (e4m3: fast accumulation), out in bfloat16.  Of
/// the algorithms that the library proposes it takes the one that is fastest here.
class Gemm {
 public:
  static constexpr double flop = 2.0 * 8192 * 8192 * 8192;

  /// \param type  bfloat16 or float8_e4m3
  Gemm(const Kokkos::Cuda& exec, ElementType type);

  /// Queues one product.
  void operator()() const;

 private:
  struct Product;
  std::shared_ptr<const Product> product_;
};

#endif

}  // namespace Tributary::Benchmark
