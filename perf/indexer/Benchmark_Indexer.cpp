#include <Tributary_Indexer.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "common/benchmark.hpp"
#include "common/machine.hpp"
#include "common/random.hpp"
#include "indexer/IndexerShape.hpp"

// indexer_score and indexer_topk on the CPU.  Counters: GFLOP/s of legal work (2 H D flop a legal pair); of_SGEMM, that rate as a
// fraction of the machine's own SGEMM, which is SGEMM GFLOP/s; GB/s of inputs and outputs, each once.  On a CUDA device:
// Benchmark_IndexerDevice.cpp.

namespace Tributary::Benchmark {

namespace {

constexpr IndexerShape shapes[] = {
    {.queries = 8192, .keys = 2048, .heads = 16, .head_dim = 64, .top_k = 256},
    {.queries = 4096, .keys = 16384, .heads = 16, .head_dim = 64, .top_k = 256},
    {.queries = 4096, .keys = 1024, .heads = 64, .head_dim = 128, .top_k = 512, .ratio = 4}};  // DeepSeek-V4's dimensions

template <class Element>
struct Inputs {
  Kokkos::View<Element***, Kokkos::LayoutRight, Kokkos::HostSpace> query;
  Kokkos::View<Element**, Kokkos::LayoutRight, Kokkos::HostSpace>  key;
  Kokkos::View<float**, Kokkos::LayoutRight, Kokkos::HostSpace>    weights;

  explicit Inputs(const IndexerShape& shape)
      : query(random<Element***>("query", 1, shape.queries, shape.heads, shape.head_dim)),
        key(random<Element**>("key", 2, shape.keys, shape.head_dim)),
        weights(random<float**>("weights", 3, shape.queries, shape.heads)) {}

  double bytes() const { return static_cast<double>(sizeof(Element) * (query.size() + key.size()) + sizeof(float) * weights.size()); }
};

template <class Exec>
void report(benchmark::State& state, const Exec& exec, const IndexerShape& shape, double bytes, double seconds) {
  const double flop_rate     = shape.flop() / seconds;
  state.counters["GFLOP/s"]  = 1e-9 * flop_rate;
  state.counters["of_SGEMM"] = flop_rate / sgemm_rate(exec);
  state.counters["SGEMM"]    = 1e-9 * sgemm_rate(exec);
  state.counters["GB/s"]     = 1e-9 * bytes / seconds;
}

template <class Element, class Exec>
void run_score(benchmark::State& state, const Exec& exec, const IndexerShape& shape) {
  const Inputs<Element> in(shape);
  const auto            scores  = output<float**>("scores", shape.queries, shape.keys);
  const double          seconds = measure(state, exec, [&] { indexer_score(exec, in.query, in.key, in.weights, scores, shape.options()); });
  report(state, exec, shape, in.bytes() + static_cast<double>(sizeof(float) * scores.size()), seconds);
}

template <class Element, class Exec>
void run_topk(benchmark::State& state, const Exec& exec, const IndexerShape& shape) {
  const Inputs<Element> in(shape);
  const auto            indices = output<std::int32_t**>("indices", shape.queries, shape.top_k);
  const auto            scores  = output<float**>("scores", shape.queries, shape.top_k);
  const double seconds = measure(state, exec, [&] { indexer_topk(exec, in.query, in.key, in.weights, indices, scores, shape.options()); });
  report(state, exec, shape, in.bytes() + static_cast<double>((sizeof(float) + sizeof(std::int32_t)) * scores.size()), seconds);
}

}  // namespace

void add_benchmarks() {
  benchmark::AddCustomContext("sgemm", sgemm_name());
  for_each_host_space([]<class Exec>(const Exec& exec, const std::string& space) {
    for (const IndexerShape& shape : shapes) {
      const auto add = [&]<class Element>(std::type_identity<Element>, const std::string& type) {
        add_benchmark({"indexer_score", space, type, shape.name()},
                      [=](benchmark::State& state) { run_score<Element>(state, exec, shape); });
        add_benchmark({"indexer_topk", space, type, shape.name()}, [=](benchmark::State& state) { run_topk<Element>(state, exec, shape); });
      };
      add(std::type_identity<float>{}, "float");
      add(std::type_identity<bfloat16_t>{}, "bfloat16");
    }
  });
#ifdef KOKKOS_ENABLE_CUDA
  add_indexer_device_benchmarks(Kokkos::Cuda{}, "cuda");
#endif
}

}  // namespace Tributary::Benchmark
