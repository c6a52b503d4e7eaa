#include <Tributary_Topk.hpp>
#include <cstdint>
#include <string>
#include <utility>

#include "common/benchmark.hpp"
#include "common/machine.hpp"
#include "common/random.hpp"

// topk on the CPU.  Counters: GB/s of values and results, each once; of_copy, that rate as a fraction of the machine's own copy, which
// is copy GB/s.

namespace Tributary::Benchmark {

namespace {

struct Shape {
  std::int64_t rows, columns, top_k;

  std::string name() const { return std::to_string(rows) + "x" + std::to_string(columns) + "_k" + std::to_string(top_k); }
};

constexpr Shape shapes[] = {{2048, 65536, 512}, {512, 262144, 1024}, {8192, 2048, 256}};

// ascending: every value beats all before it, the worst for a threshold.  equal: only indices decide.
enum class Order { random, ascending, equal };

template <class Exec>
void run(benchmark::State& state, const Exec& exec, const Shape& shape, Order order) {
  const auto columns = static_cast<std::uint64_t>(shape.columns);
  const auto value   = [=](std::uint64_t i) {
    return order == Order::random ? random_value(1, i) : order == Order::ascending ? static_cast<float>(i % columns) : 1.0f;
  };
  const auto   values       = filled<float**>("values", value, shape.rows, shape.columns);
  const auto   indices      = output<std::int32_t**>("indices", shape.rows, shape.top_k);
  const auto   scores       = output<float**>("scores", shape.rows, shape.top_k);
  const double seconds      = measure(state, exec, [&] { topk(exec, values, indices, scores); });
  const double byte_rate    = static_cast<double>(4 * (values.size() + indices.size() + scores.size())) / seconds;
  state.counters["GB/s"]    = 1e-9 * byte_rate;
  state.counters["of_copy"] = byte_rate / copy_rate(exec);
  state.counters["copy"]    = 1e-9 * copy_rate(exec);
}

}  // namespace

void add_benchmarks() {
  for_each_host_space([](const auto& exec, const std::string& space) {
    for (const Shape& shape : shapes)
      for (const auto& [order, name] :
           {std::pair{Order::random, "random"}, std::pair{Order::ascending, "ascending"}, std::pair{Order::equal, "equal"}})
        add_benchmark({"topk", space, "float", shape.name(), name},
                      [=, order = order](benchmark::State& state) { run(state, exec, shape, order); });
  });
}

}  // namespace Tributary::Benchmark
