#include <Tributary_Attention.hpp>

// There are no gradients of e4m3.

void call() {
  using Heads = Kokkos::View<Tributary::float8_e4m3_t****, Kokkos::LayoutRight, Kokkos::HostSpace>;
  using Outs  = Kokkos::View<float****, Kokkos::LayoutRight, Kokkos::HostSpace>;
  const Heads                                                          heads("heads", 1, 1, 1, 1);
  const Outs                                                           outs("outs", 1, 1, 1, 1);
  const Kokkos::View<float***, Kokkos::LayoutRight, Kokkos::HostSpace> lse("lse", 1, 1, 1);
  Tributary::attention_backward(Kokkos::DefaultHostExecutionSpace{}, heads, heads, heads, outs, lse, outs, heads, heads, heads);
}
