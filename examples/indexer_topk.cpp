#include <Kokkos_Random.hpp>
#include <Tributary.hpp>
#include <cstdio>

int main(int argc, char** argv) {
  const Kokkos::ScopeGuard                                kokkos(argc, argv);
  const Kokkos::View<float***, Kokkos::LayoutRight>       query("query", 2048, 16, 64);  // [queries, heads, head dimension]
  const Kokkos::View<float**, Kokkos::LayoutRight>        key("key", 512, 64);           // a key stands for 4 tokens
  const Kokkos::View<float**, Kokkos::LayoutRight>        weights("weights", 2048, 16);
  const Kokkos::View<std::int32_t**, Kokkos::LayoutRight> indices("indices", 2048, 32);  // the 32 best keys of every query
  const Kokkos::Random_XorShift64_Pool<>                  random(2026);
  Kokkos::fill_random(query, random, -1.0f, 1.0f);
  Kokkos::fill_random(key, random, -1.0f, 1.0f);
  Kokkos::fill_random(weights, random, 0.0f, 1.0f);

  Tributary::indexer_topk(query, key, weights, indices, std::nullopt, {.legal_keys = Tributary::RatioCausal{.ratio = 4}});

  const auto chosen = Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, indices);
  std::printf("query 2047 chose keys %d, %d, %d, ...\n", chosen(2047, 0), chosen(2047, 1), chosen(2047, 2));
}
