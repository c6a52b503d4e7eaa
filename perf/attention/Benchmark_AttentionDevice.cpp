#include <Tributary_Attention.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "attention/AttentionCalls.hpp"
#include "attention/AttentionCheck.hpp"
#include "common/benchmark.hpp"
#include "common/device.hpp"
#include "common/gemm.hpp"

// attention_forward and attention_backward on a CUDA device, 16384 tokens in heads of 2048 numbers together, with their workspace given.
// Sampled rows are compared with the reference before anything is timed.  Time: a call in short trains after a rest, and sustained_ms: back
// to back (perf/common/device.hpp).  Counters: TFLOP/s of legal work (forward 4 D, backward 10 D flop a legal pair and head); r, that rate
// as a fraction of the product of 8192 x 8192 matrices of the same type, which is GEMM TFLOP/s, timed by turns with it; peak_bytes beyond
// inputs and outputs.

namespace Tributary::Benchmark {

namespace {

using Exec      = Kokkos::Cuda;
using Workspace = Kokkos::View<std::byte*, Exec::memory_space>;

template <class Call>
double run(benchmark::State& state, const Exec& exec, const AttentionShape& shape, const Call& call) {
  const Workspace workspace("workspace", call.workspace_size(exec));
  const auto      run_call = [&] { call.run(exec, workspace); };
  {
    const Program::AllocationMeter meter;
    run_call();
    exec.fence("Tributary benchmark: memory");
    state.counters["peak_bytes"] = static_cast<double>(workspace.size()) + static_cast<double>(meter.peak_bytes());
  }
  require_right(shape, call);
  const Gemm gemm(exec, Call::type);
  gemm();
  const CallsOnDevice calls = train(exec, run_call), products = train(exec, gemm);
  const auto          seconds = measure_by_turns({&calls, &products});
  report_rates(state, shape.flop(Call::products), seconds[0], Gemm::flop, seconds[1]);
  return seconds[0].burst;
}

void add_e4m3(const Exec& exec, const std::string& space, const AttentionShape& shape) {
  add_device_benchmark({"attention_forward", space, "e4m3", shape.name(), name_of(Level::hopper)},
                       [=](benchmark::State& state) { return run(state, exec, shape, E4m3ForwardCall<Exec>(shape, Level::hopper)); });
}

void add_cases(const Exec& exec, const std::string& space, const AttentionShape& shape, Level level) {
  using Element = bfloat16_t;
  const std::string type("bfloat16");
  add_device_benchmark({"attention_forward", space, type, shape.name(), name_of(level)},
                       [=](benchmark::State& state) { return run(state, exec, shape, ForwardCall<Element, Exec>(shape, level)); });
  add_device_benchmark({"attention_backward", space, type, shape.name(), name_of(level)}, [=](benchmark::State& state) {
    const BackwardCall<Element, Exec> backward(shape, level);
    backward.forward.run(exec);
    return run(state, exec, shape, backward);
  });
}

}  // namespace

void add_attention_device_benchmarks(const Exec& exec, const std::string& space) {
  const auto shape = [](std::int64_t head_dim, bool causal) {
    return AttentionShape{.length = 16384, .heads = 2048 / head_dim, .head_dim = head_dim, .causal = causal};
  };
  for (const std::int64_t head_dim : {64, 128, 256})
    for (const bool causal : {false, true}) add_cases(exec, space, shape(head_dim, causal), Level::hopper);
  for (const std::int64_t head_dim : {64, 128})
    for (const bool causal : {false, true}) add_e4m3(exec, space, shape(head_dim, causal));
  for (const bool causal : {false, true}) add_cases(exec, space, shape(128, causal), Level::portable);
}

}  // namespace Tributary::Benchmark
