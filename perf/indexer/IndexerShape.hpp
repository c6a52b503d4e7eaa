#pragma once
#include <Tributary_Indexer.hpp>
#include <algorithm>
#include <cstdint>
#include <string>

namespace Tributary::Benchmark {

struct IndexerShape {
  std::int64_t queries, keys, heads, head_dim, top_k;
  std::int32_t ratio = 0;  // 0: every key is legal

  std::string name() const {
    return "S" + std::to_string(queries) + "_T" + std::to_string(keys) + "_H" + std::to_string(heads) + "_D" + std::to_string(head_dim) +
           "_k" + std::to_string(top_k) + (ratio == 0 ? "_full" : "_ratio" + std::to_string(ratio));
  }
  std::int64_t legal_keys(std::int64_t query) const { return ratio == 0 ? keys : std::min(keys, (query + 1) / ratio); }
  double       legal_pairs() const {
          std::int64_t pairs = 0;
          for (std::int64_t t = 0; t < queries; ++t) pairs += legal_keys(t);
    return static_cast<double>(pairs);
  }
  double         flop() const { return 2.0 * static_cast<double>(heads * head_dim) * legal_pairs(); }
  IndexerOptions options() const { return ratio == 0 ? IndexerOptions{} : IndexerOptions{.legal_keys = RatioCausal{.ratio = ratio}}; }
};

#ifdef KOKKOS_ENABLE_CUDA
void add_indexer_device_benchmarks(const Kokkos::Cuda& exec, const std::string& space);
#endif

}  // namespace Tributary::Benchmark
