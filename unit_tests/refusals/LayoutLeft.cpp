#include <Tributary_Topk.hpp>

// Rows that are not contiguous: the default layout of device Views.
void topk_of_columns(const Kokkos::View<float**, Kokkos::LayoutLeft, Kokkos::HostSpace>& values,
                     const Kokkos::View<int**, Kokkos::LayoutRight, Kokkos::HostSpace>&  indices) {
  Tributary::topk(Kokkos::DefaultHostExecutionSpace{}, values, indices, std::nullopt);
}
