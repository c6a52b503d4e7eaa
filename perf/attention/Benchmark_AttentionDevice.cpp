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

// attention_forward and attention_backward on a CUDA device, 16384 tokens of up to 2048 numbers in all heads, with their workspace given;
// also heads of 512 that share one key head.  any_order: gradients of queries are added up in the order of events (deterministic =
// false).  Gradients of biases, besides: of slopes and a table of 32 buckets, of a mask that is the same for all heads and queries, or
// heads. Sampled rows are compared with the reference before anything is timed.  Time: a call in short trains after a rest, and
// sustained_ms: back to back (perf/common/device.hpp).  Counters: TFLOP/s of legal work (forward 4 D, backward 10 D flop a legal pair and
// head); r, that rate as a fraction of the product of 8192 x 8192 matrices of the same type, which is GEMM TFLOP/s, timed by turns with it;
// peak_bytes beyond inputs and outputs.

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

void add_forward(const Exec& exec, const std::string& space, const AttentionShape& shape, Level level) {
  add_device_benchmark({"attention_forward", space, "bfloat16", shape.name(), name_of(level)},
                       [=](benchmark::State& state) { return run(state, exec, shape, ForwardCall<bfloat16_t, Exec>(shape, level)); });
}

void add_e4m3(const Exec& exec, const std::string& space, const AttentionShape& shape) {
  add_device_benchmark({"attention_forward", space, "e4m3", shape.name(), name_of(Level::hopper)},
                       [=](benchmark::State& state) { return run(state, exec, shape, E4m3ForwardCall<Exec>(shape, Level::hopper)); });
}

void add_backward(const Exec& exec, const std::string& space, const AttentionShape& shape, bool deterministic, Level level) {
  const std::string order(deterministic ? "" : "_any_order");
  add_device_benchmark({"attention_backward", space, "bfloat16", shape.name() + order, name_of(level)}, [=](benchmark::State& state) {
    BackwardCall<bfloat16_t, Exec> backward(shape, level);
    backward.forward.options.deterministic = deterministic;
    backward.forward.run(exec);
    return run(state, exec, shape, backward);
  });
}

void add_cases(const Exec& exec, const std::string& space, const AttentionShape& shape, Level level) {
  add_forward(exec, space, shape, level);
  add_backward(exec, space, shape, true, level);
  if (level == Level::hopper) add_backward(exec, space, shape, false, level);
}

void add_biased(const Exec& exec, const std::string& space, const AttentionShape& shape, Biases biases, Level level) {
  add_device_benchmark({"attention_backward", space, "bfloat16", shape.name() + "_" + name_of(biases), name_of(level)},
                       [=](benchmark::State& state) {
                         BiasedBackwardCall<bfloat16_t, Exec> backward(shape, biases, level);
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
  for (const bool causal : {false, true}) add_backward(exec, space, shape(512, causal), true, Level::hopper);
  // Head dimensions that run as the next larger tile's do, 192 backward only.
  for (const std::int64_t head_dim : {32, 96, 192}) {
    add_forward(exec, space, shape(head_dim, true), Level::hopper);
    add_backward(exec, space, shape(head_dim, true), true, Level::hopper);
  }
  for (const std::int64_t head_dim : {64, 128})
    for (const bool causal : {false, true}) add_e4m3(exec, space, shape(head_dim, causal));
  for (const bool causal : {false, true}) add_cases(exec, space, shape(128, causal), Level::portable);
  for (const Biases biases : {Biases::slopes_and_table, Biases::mask_of_keys, Biases::mask_of_pairs}) {
    for (const std::int64_t head_dim : {64, 128, 256, 512}) add_biased(exec, space, shape(head_dim, true), biases, Level::hopper);
    add_biased(exec, space, shape(128, true), biases, Level::portable);
  }
  // Multi-query heads of 512 numbers, with a sliding window and with every key; values of their own, or the keys.
  for (const std::int64_t heads : {64, 128})
    for (const bool values_are_keys : {true, false}) {
      AttentionShape wide{.length = 16384, .heads = heads, .head_dim = 512, .causal = true, .key_heads = 1, .window = 128};
      wide.values_are_keys = values_are_keys;
      add_forward(exec, space, wide, Level::hopper);
      if (heads == 64 && !values_are_keys) {
        add_forward(exec, space, wide, Level::portable);
        for (const Level level : {Level::hopper, Level::portable}) add_backward(exec, space, wide, true, level);
      }
      wide.window = wide.length;
      if (heads == 64) add_forward(exec, space, wide, Level::hopper);
    }
}

}  // namespace Tributary::Benchmark
