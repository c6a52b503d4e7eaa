#include <Tributary_Reference.hpp>
#include <Tributary_Topk.hpp>
#include <algorithm>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "common/benchmark.hpp"
#include "common/device.hpp"
#include "common/machine.hpp"
#include "common/random.hpp"

// topk.  Sampled rows are compared with the reference before anything is timed.  Counters: GB/s of values and results, each once; of_copy,
// that rate as a fraction of the machine's own copy, which is copy GB/s; input and input_of_copy, the same of the values alone.

namespace Tributary::Benchmark {

namespace {

struct Shape {
  std::int64_t rows, columns, top_k;

  std::string name() const { return std::to_string(rows) + "x" + std::to_string(columns) + "_k" + std::to_string(top_k); }
};

// ascending: every value beats all before it, the worst for a threshold.  equal: only indices decide.
enum class Order { random, ascending, equal };

constexpr std::pair<Order, const char*> orders[] = {{Order::random, "random"}, {Order::ascending, "ascending"}, {Order::equal, "equal"}};

struct OrderedValue {
  Order         order;
  std::uint64_t columns;

  KOKKOS_INLINE_FUNCTION float operator()(std::uint64_t i) const {
    return order == Order::random ? random_value(1, i) : order == Order::ascending ? static_cast<float>(i % columns) : 1.0f;
  }
};

template <class Value, class Exec>
struct Data {
  Array<Value**, Exec>        values;
  Array<std::int32_t**, Exec> indices;
  Array<float**, Exec>        scores;

  template <class FillSpace>
  Data(const Shape& shape, Order order, const FillSpace&)
      : values(filled<Value**, FillSpace>("values", OrderedValue{order, static_cast<std::uint64_t>(shape.columns)}, shape.rows,
                                          shape.columns)),
        indices(output<std::int32_t**, Exec>("indices", shape.rows, shape.top_k)),
        scores(output<float**, Exec>("scores", shape.rows, shape.top_k)) {}

  /// Whether the first row, the last and one between are the reference's: topk leaves nothing to rounding.
  bool is_right() const {
    const auto rows = static_cast<std::int64_t>(values.extent(0));
    return std::ranges::all_of(std::set<std::int64_t>{0, rows / 3, rows - 1}, [&](std::int64_t r) {
      const auto row = [&](const auto& array) {
        return Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, Kokkos::subview(array, std::pair(r, r + 1), Kokkos::ALL));
      };
      const auto row_indices = row(indices);
      const auto row_scores  = row(scores);
      const auto k           = row_indices.size();

      const Array<std::int32_t**, Kokkos::HostSpace> expected_indices("expected indices", 1, k);
      const Array<float**, Kokkos::HostSpace>        expected_scores("expected scores", 1, k);
      Reference::topk(row(values), expected_indices, expected_scores);
      return std::equal(row_indices.data(), row_indices.data() + k, expected_indices.data()) &&
             std::equal(row_scores.data(), row_scores.data() + k, expected_scores.data());
    });
  }

  void report(benchmark::State& state, const Exec& exec, double seconds) const {
    const double read = static_cast<double>(sizeof(Value) * values.size()), written = static_cast<double>(8 * indices.size());
    state.counters["GB/s"]          = 1e-9 * (read + written) / seconds;
    state.counters["of_copy"]       = (read + written) / seconds / copy_rate(exec);
    state.counters["input"]         = 1e-9 * read / seconds;
    state.counters["input_of_copy"] = read / seconds / copy_rate(exec);
    state.counters["copy"]          = 1e-9 * copy_rate(exec);
  }
};

// On the CPU.

constexpr Shape host_shapes[] = {{2048, 65536, 512}, {512, 262144, 1024}, {8192, 2048, 256}};

template <class Exec>
void run(benchmark::State& state, const Exec& exec, const Shape& shape, Order order) {
  const Data<float, Exec> data(shape, order, Kokkos::DefaultHostExecutionSpace{});
  topk(exec, data.values, data.indices, data.scores);
  exec.fence("Tributary benchmark: check");
  if (!data.is_right()) return state.SkipWithError("wrong result: a row");
  data.report(state, exec, measure(state, exec, [&] { topk(exec, data.values, data.indices, data.scores); }));
}

// On a CUDA device.

#ifdef KOKKOS_ENABLE_CUDA

// Rows that fill the device; few long rows, whose values stay in the second-level cache from call to call; many short ones.
const std::vector<Shape> large_shapes = {{2048, 65536, 512}, {512, 262144, 1024}};
const std::vector<Shape> other_shapes = {{1, 262144, 512},  {1, 262144, 2048}, {4, 262144, 512},   {16, 262144, 512}, {16, 262144, 2048},
                                         {1, 8192, 512},    {64, 65536, 512},  {132, 65536, 512},  {200, 65536, 512}, {1, 16777216, 1024},
                                         {8192, 8192, 512}, {8192, 2048, 256}, {100000, 1024, 64}, {1000000, 64, 8}};

/// Seconds of a call in bursts.
template <class Value>
double run_on_device(benchmark::State& state, const Kokkos::Cuda& exec, const Shape& shape, Order order, Level level) {
  const Data<Value, Kokkos::Cuda>                   data(shape, order, exec);
  const TopkOptions                                 options{.level = level};
  const std::size_t                                 bytes = topk_workspace_size(exec, data.values, data.indices, data.scores, options);
  const Kokkos::View<std::byte*, Kokkos::CudaSpace> workspace("workspace", bytes);
  const auto                                        call = [&] { topk(exec, data.values, data.indices, data.scores, options, workspace); };
  call();
  exec.fence("Tributary benchmark: warm");
  if (!data.is_right()) throw std::runtime_error("wrong result: a row");
  const CallsOnDevice calls      = train(exec, call);
  const CallSeconds   seconds    = measure_by_turns({&calls})[0];
  state.counters["peak_bytes"]   = static_cast<double>(bytes);
  state.counters["sustained_ms"] = 1e3 * seconds.sustained;
  data.report(state, exec, seconds.burst);
  return seconds.burst;
}

void add_device_benchmarks(const Kokkos::Cuda& exec, const std::string& space) {
  const auto add = [&]<class Value>(Value, const char* type, const Shape& shape, Order order, const char* order_name, Level level) {
    add_device_benchmark({"topk", space, type, shape.name(), order_name, name_of(level)},
                         [=](benchmark::State& state) { return run_on_device<Value>(state, exec, shape, order, level); });
  };
  for (const Shape& shape : large_shapes)
    for (const auto& [order, name] : orders) {
      add(float{}, "float", shape, order, name, Level::hopper);
      add(bfloat16_t{}, "bfloat16", shape, order, name, Level::hopper);
    }
  for (const Shape& shape : other_shapes) {
    add(float{}, "float", shape, Order::random, "random", Level::hopper);
    add(bfloat16_t{}, "bfloat16", shape, Order::random, "random", Level::hopper);
  }
  add(float{}, "float", large_shapes[0], Order::random, "random", Level::portable);
}

#endif

}  // namespace

void add_benchmarks() {
  for_each_space([](const auto& exec, const std::string& space) {
    if constexpr (Impl::host_memory<std::remove_cvref_t<decltype(exec)>>) {
      for (const Shape& shape : host_shapes)
        for (const auto& [order, name] : orders)
          add_benchmark({"topk", space, "float", shape.name(), name},
                        [=, order = order](benchmark::State& state) { run(state, exec, shape, order); });
    }
#ifdef KOKKOS_ENABLE_CUDA
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(exec)>, Kokkos::Cuda>) add_device_benchmarks(exec, space);
#endif
  });
}

}  // namespace Tributary::Benchmark
