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
// false).  Each option by itself, with values that leave the results as they are; `and_gradient`: with the gradients of its biases. Masks
// are the same for all heads (mask_of_keys: and for all queries).  Sampled rows are compared with the reference before anything is timed.
// Time: a call in short trains after a rest, and sustained_ms: back to back (perf/common/device.hpp).  Counters: TFLOP/s of legal work
// (forward 4 D, backward 10 D flop a legal pair and head); r, that rate as a fraction of the product of 8192 x 8192 matrices of the same
// type, which is GEMM TFLOP/s, timed by turns with it; peak_bytes beyond inputs and outputs.

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

struct Case {
  AttentionShape shape;
  Level          level         = Level::hopper;
  Extra          extra         = Extra::none;
  bool           and_gradient  = false;  // of the option's biases
  bool           deterministic = true;

  std::string name() const {
    return shape.name() + (extra == Extra::none ? "" : "_" + name_of(extra)) + (and_gradient ? "_and_gradient" : "") +
           (deterministic ? "" : "_any_order");
  }
};

void add_forward(const Exec& exec, const std::string& space, const Case& of) {
  add_device_benchmark({"attention_forward", space, "bfloat16", of.name(), name_of(of.level)}, [=](benchmark::State& state) {
    ForwardCall<bfloat16_t, Exec> forward(of.shape, of.level);
    ExtraArrays<Exec>             arrays;
    arrays.add(of.shape, of.extra, forward.options);
    return run(state, exec, of.shape, forward);
  });
}

void add_e4m3(const Exec& exec, const std::string& space, const AttentionShape& shape) {
  add_device_benchmark({"attention_forward", space, "e4m3", shape.name(), name_of(Level::hopper)},
                       [=](benchmark::State& state) { return run(state, exec, shape, E4m3ForwardCall<Exec>(shape, Level::hopper)); });
}

void add_backward(const Exec& exec, const std::string& space, const Case& of) {
  add_device_benchmark({"attention_backward", space, "bfloat16", of.name(), name_of(of.level)}, [=](benchmark::State& state) {
    BackwardCall<bfloat16_t, Exec> backward(of.shape, of.level);
    ExtraArrays<Exec>              arrays;
    arrays.add(of.shape, of.extra, backward.forward.options);
    if (of.and_gradient) arrays.add_gradients(backward.gradients);
    backward.forward.options.deterministic = of.deterministic;
    backward.forward.run(exec);
    return run(state, exec, of.shape, backward);
  });
}

void add_cases(const Exec& exec, const std::string& space, const Case& of) {
  add_forward(exec, space, of);
  add_backward(exec, space, of);
}

}  // namespace

void add_attention_device_benchmarks(const Exec& exec, const std::string& space) {
  const auto shape = [](std::int64_t head_dim, bool causal) {
    return AttentionShape{.length = 16384, .heads = 2048 / head_dim, .head_dim = head_dim, .causal = causal};
  };
  for (const std::int64_t head_dim : {64, 128, 256})
    for (const bool causal : {false, true}) {
      add_cases(exec, space, {shape(head_dim, causal)});
      add_backward(exec, space, {.shape = shape(head_dim, causal), .deterministic = false});
    }
  for (const bool causal : {false, true}) add_backward(exec, space, {shape(512, causal)});
  // Head dimensions that run as the next larger tile's do, 192 backward only.
  for (const std::int64_t head_dim : {32, 96, 192}) add_cases(exec, space, {shape(head_dim, true)});
  for (const std::int64_t head_dim : {64, 128})
    for (const bool causal : {false, true}) add_e4m3(exec, space, shape(head_dim, causal));
  for (const bool causal : {false, true}) add_cases(exec, space, {shape(128, causal), Level::portable});
  for (const Extra extra : {Extra::softcap, Extra::sink, Extra::slopes, Extra::table, Extra::slopes_and_table, Extra::key_keep, Extra::keep,
                            Extra::mask_of_keys, Extra::mask_of_pairs, Extra::dropout})
    add_cases(exec, space, {.shape = shape(128, true), .extra = extra});
  for (const Extra extra : {Extra::slopes_and_table, Extra::mask_of_keys, Extra::mask_of_pairs}) {
    for (const std::int64_t head_dim : {64, 128, 256, 512})
      add_backward(exec, space, {.shape = shape(head_dim, true), .extra = extra, .and_gradient = true});
    add_backward(exec, space, {shape(128, true), Level::portable, extra, true});
  }
  // Multi-query heads of 512 numbers, with a sliding window and with every key; values of their own, or the keys.
  for (const std::int64_t heads : {64, 128})
    for (const bool values_are_keys : {true, false}) {
      AttentionShape wide{.length = 16384, .heads = heads, .head_dim = 512, .causal = true, .key_heads = 1, .window = 128};
      wide.values_are_keys = values_are_keys;
      add_forward(exec, space, {wide});
      if (heads == 64 && !values_are_keys) {
        add_cases(exec, space, {wide, Level::portable});
        add_backward(exec, space, {wide});
      }
      wide.window = wide.length;
      if (heads == 64) add_forward(exec, space, {wide});
    }
}

}  // namespace Tributary::Benchmark
