#include <Tributary_Topk.hpp>

void topk_into_const(const Kokkos::View<float**, Kokkos::LayoutRight, Kokkos::HostSpace>&     values,
                     const Kokkos::View<const int**, Kokkos::LayoutRight, Kokkos::HostSpace>& indices) {
  Tributary::topk(Kokkos::DefaultHostExecutionSpace{}, values, indices, std::nullopt);
}
