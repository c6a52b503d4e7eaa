#include <Tributary_Indexer.hpp>

using Tributary::bfloat16_t;
using Tributary::half_t;

template <class T>
using Rows = Kokkos::View<T**, Kokkos::LayoutRight, Kokkos::HostSpace>;

void score_of_two_types(const Kokkos::View<half_t***, Kokkos::LayoutRight, Kokkos::HostSpace>& query, const Rows<bfloat16_t>& key,
                        const Rows<float>& weights, const Rows<float>& scores) {
  Tributary::indexer_score(Kokkos::DefaultHostExecutionSpace{}, query, key, weights, scores);
}
