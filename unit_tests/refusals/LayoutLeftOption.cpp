#include <Tributary_Indexer.hpp>

// The same inside an options struct.
Tributary::IndexerOptions ranges_in_columns(const Kokkos::View<int**, Kokkos::LayoutLeft, Kokkos::HostSpace>& range) {
  return {.legal_keys = Tributary::KeyRange{range}};
}
