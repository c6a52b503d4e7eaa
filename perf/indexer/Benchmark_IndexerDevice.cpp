#include <Tributary_Indexer.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/benchmark.hpp"
#include "common/device.hpp"
#include "common/gemm.hpp"
#include "common/read.hpp"
#include "indexer/IndexerCheck.hpp"
#include "indexer/IndexerInputs.hpp"
#include "indexer/IndexerShape.hpp"

// indexer_topk on a CUDA device, with its workspace given; k = 1 stands for scoring alone.  Sampled rows are compared with the reference
// before anything is timed.  Time: a call in short trains after a rest, and sustained_ms: back to back (perf/common/device.hpp).  Counters:
// TFLOP/s of legal work (2 H D flop a legal pair); r, that rate as a fraction of the product of 8192 x 8192 matrices of the same type,
// which is GEMM TFLOP/s, timed by turns with it; peak_bytes beyond inputs and outputs; where few queries read many keys: GB/s of keys, and
// that rate as a fraction of a read-only reduction's over the same bytes, which is read GB/s.

namespace Tributary::Benchmark {

namespace {

using Exec = Kokkos::Cuda;

template <class Element>
struct Call {
  Exec                                         exec;
  IndexerInputs<Element>                       in;
  Array<std::int32_t**, Exec>                  indices;
  Array<float**, Exec>                         scores;
  IndexerOptions                               options;
  std::size_t                                  workspace_bytes;
  Kokkos::View<std::byte*, Exec::memory_space> workspace;

  Call(const Exec& exec_, const IndexerShape& shape, ScoreOrder order, Level level)
      : exec(exec_),
        in(shape, order),
        indices(output<std::int32_t**, Exec>("indices", shape.queries, shape.top_k)),
        scores(output<float**, Exec>("scores", shape.queries, shape.top_k)),
        options(in.options(shape, level)),
        workspace_bytes(indexer_topk_workspace_size(exec, in.query, in.key, in.weights, indices, scores, options)),
        workspace("workspace", workspace_bytes) {}

  void operator()() const { on(in.key); }
  void on(const Array<Element**, Exec>& key) const { indexer_topk(exec, in.query, key, in.weights, indices, scores, options, workspace); }
  /// Runs it, and throws unless it is right.
  void check(benchmark::State& state, const IndexerShape& shape, ScoreOrder order) const {
    {
      const Program::AllocationMeter meter;
      (*this)();
      exec.fence("Tributary benchmark: memory");
      state.counters["peak_bytes"] = static_cast<double>(workspace_bytes) + static_cast<double>(meter.peak_bytes());
    }
    require_right_result(shape, order, in, indices, scores);
  }
};

template <class Element>
double run_prefill(benchmark::State& state, const Exec& exec, const IndexerShape& shape, ScoreOrder order, Level level) {
  const Call<Element> call(exec, shape, order, level);
  call.check(state, shape, order);
  const Gemm gemm(exec, element_type<Element>());
  gemm();
  const CallsOnDevice calls = train(exec, call), products = train(exec, gemm);
  const auto          seconds = measure_by_turns({&calls, &products});
  report_rates(state, shape.flop(), seconds[0], Gemm::flop, seconds[1]);
  return seconds[0].burst;
}

/// Few queries: the keys are read once and little else is, so each call gets another copy of them than the last did, more copies than the
/// second-level cache holds.
template <class Element>
double run_decode(benchmark::State& state, const Exec& exec, const IndexerShape& shape, Level level) {
  constexpr std::size_t least_bytes = 256 << 20;
  const Call<Element>   call(exec, shape, ScoreOrder::random, level);
  call.check(state, shape, ScoreOrder::random);
  const std::size_t                   bytes = call.in.key.size() * sizeof(Element);
  std::vector<Array<Element**, Exec>> copies(least_bytes / bytes + 1);
  for (auto& key : copies) {
    key = Array<Element**, Exec>(Kokkos::view_alloc("key", Kokkos::WithoutInitializing), shape.keys, shape.head_dim);
    Kokkos::deep_copy(exec, key, call.in.key);
  }
  const Array<int*, Exec> never("never", 1);
  const auto              read_all = [&] {
    for (const auto& key : copies) read_only_reduction(exec, key.data(), bytes, never.data());
  };
  const auto call_all = [&] {
    for (const auto& key : copies) call.on(key);
  };
  const Gemm gemm(exec, element_type<Element>());
  gemm();
  read_all();
  const CallsOnDevice calls = train(exec, call_all), reads = train(exec, read_all), products = train(exec, gemm);
  const auto          seconds = measure_by_turns({&calls, &reads, &products});
  const auto          count   = static_cast<double>(copies.size());
  const CallSeconds   a_call = seconds[0] / count, a_read = seconds[1] / count;
  report_rates(state, shape.flop(), a_call, Gemm::flop, seconds[2]);
  const auto report_read = [&](const std::string& kind, double call_seconds, double read_seconds) {
    state.counters[kind + "GB/s"]    = 1e-9 * static_cast<double>(bytes) / call_seconds;
    state.counters[kind + "read"]    = 1e-9 * static_cast<double>(bytes) / read_seconds;
    state.counters[kind + "of_read"] = read_seconds / call_seconds;
  };
  report_read("", a_call.burst, a_read.burst);
  report_read("sustained_", a_call.sustained, a_read.sustained);
  return a_call.burst;
}

constexpr std::int32_t ratio = 4;

/// One key for four tokens, causal.
constexpr IndexerShape compressed(std::int64_t tokens, std::int64_t top_k, std::int64_t heads = 64) {
  return {.queries = tokens, .keys = tokens / ratio, .heads = heads, .head_dim = 128, .top_k = top_k, .ratio = ratio};
}

constexpr std::int64_t K = 1024;

/// The cases of a type, those that matter most first.
template <class Element>
void add_cases(const Exec& exec, const std::string& space, const std::string& type) {
  const auto add = [&](const IndexerShape& shape, ScoreOrder order = ScoreOrder::random, Level level = Level::hopper) {
    add_device_benchmark({"indexer_topk", space, type, shape.name(), name_of(order), name_of(level)},
                         [=](benchmark::State& state) { return run_prefill<Element>(state, exec, shape, order, level); });
  };
  for (const std::int64_t tokens : {32 * K, 64 * K, 128 * K, 256 * K})
    for (const std::int64_t top_k : {1, 512, 1024, 2048}) add(compressed(tokens, top_k));
  for (const std::int64_t top_k : {512, 1024, 1}) add(compressed(1024 * K, top_k));
  for (const std::int64_t tokens : {64 * K, 128 * K})
    for (const std::int64_t top_k : {1, 512, 2048}) add(compressed(tokens, top_k, 32));
  for (const ScoreOrder order : {ScoreOrder::ascending, ScoreOrder::descending, ScoreOrder::equal, ScoreOrder::sixteen})
    for (const std::int64_t top_k : {512, 2048}) add(compressed(128 * K, top_k), order);
  for (const std::int64_t queries : {1, 2, 3, 4, 8, 16}) {
    const IndexerShape shape{.queries = queries, .keys = 256 * K, .heads = 64, .head_dim = 128, .top_k = 512};
    add_device_benchmark({"indexer_topk", space, type, shape.name(), "rotating", name_of(Level::hopper)},
                         [=](benchmark::State& state) { return run_decode<Element>(state, exec, shape, Level::hopper); });
  }
  for (const std::int64_t tokens : {1 * K, 2 * K, 4 * K, 8 * K, 16 * K}) add(compressed(tokens, 512));
  add(compressed(32 * K, 512), ScoreOrder::random, Level::portable);
}

}  // namespace

void add_indexer_device_benchmarks(const Exec& exec, const std::string& space) {
  add_cases<bfloat16_t>(exec, space, "bfloat16");
  add_cases<float8_e4m3_t>(exec, space, "e4m3");
}

}  // namespace Tributary::Benchmark
