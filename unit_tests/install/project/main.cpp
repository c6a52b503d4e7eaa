#include <Kokkos_Core.hpp>
#include <Tributary.hpp>
#include <cstdio>
#include <optional>

static_assert(TRIBUTARY_VERSION_NUMBER >= 100);

// The two largest of 1, 4, 3, 4: columns 1 and 3.
int main(int argc, char** argv) {
  const Kokkos::ScopeGuard kokkos(argc, argv);
  using Space = Kokkos::DefaultExecutionSpace;
  const Kokkos::View<float**, Kokkos::LayoutRight, Space>        values("values", 1, 4);
  const Kokkos::View<std::int32_t**, Kokkos::LayoutRight, Space> indices("indices", 1, 2);
  const auto                                                     host = Kokkos::create_mirror_view(values);
  host(0, 0) = 1, host(0, 1) = 4, host(0, 2) = 3, host(0, 3) = 4;
  Kokkos::deep_copy(values, host);
  Tributary::topk(values, indices, std::nullopt);
  const auto chosen = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, indices);
  std::printf("Tributary %s on %s chose columns %d and %d\n", TRIBUTARY_VERSION, Space::name(), chosen(0, 0), chosen(0, 1));
  return chosen(0, 0) == 1 && chosen(0, 1) == 3 ? 0 : 1;
}
