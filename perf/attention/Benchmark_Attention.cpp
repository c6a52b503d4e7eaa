#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "attention/AttentionCalls.hpp"
#include "common/benchmark.hpp"
#include "common/machine.hpp"

// attention_forward and attention_backward on the CPU.  Counters: GFLOP/s of legal work (forward 4 D, backward 10 D flop a legal pair and
// head; what the backward pass computes twice counts once); of_SGEMM, that rate as a fraction of the machine's own SGEMM, which is SGEMM
// GFLOP/s; GB/s of inputs and outputs, each once.  On a CUDA device: Benchmark_AttentionDevice.cpp.

namespace Tributary::Benchmark {

namespace {

constexpr AttentionShape shapes[] = {{.length = 2048, .heads = 8, .head_dim = 64, .causal = false},
                                     {.length = 2048, .heads = 8, .head_dim = 64, .causal = true},
                                     {.length = 2048, .heads = 8, .head_dim = 128, .causal = false},
                                     {.length = 2048, .heads = 8, .head_dim = 128, .causal = true}};

template <class Exec, class Call>
void time_call(benchmark::State& state, const Exec& exec, const AttentionShape& shape, const Call& call) {
  const double seconds       = measure(state, exec, [&] { call.run(exec); });
  const double flop_rate     = shape.flop(Call::products) / seconds;
  state.counters["GFLOP/s"]  = 1e-9 * flop_rate;
  state.counters["of_SGEMM"] = flop_rate / sgemm_rate(exec);
  state.counters["SGEMM"]    = 1e-9 * sgemm_rate(exec);
  state.counters["GB/s"]     = 1e-9 * call.bytes() / seconds;
}

template <class Element, class Exec>
void run_forward(benchmark::State& state, const Exec& exec, const AttentionShape& shape) {
  time_call(state, exec, shape, ForwardCall<Element>(shape));
}

template <class Element, class Exec>
void run_backward(benchmark::State& state, const Exec& exec, const AttentionShape& shape) {
  const BackwardCall<Element> backward(shape);
  backward.forward.run(exec);
  time_call(state, exec, shape, backward);
}

}  // namespace

void add_benchmarks() {
  benchmark::AddCustomContext("sgemm", sgemm_name());
  for_each_host_space([]<class Exec>(const Exec& exec, const std::string& space) {
    for (const AttentionShape& shape : shapes) {
      const auto add = [&]<class Element>(std::type_identity<Element>, const std::string& type) {
        add_benchmark({"attention_forward", space, type, shape.name()},
                      [=](benchmark::State& state) { run_forward<Element>(state, exec, shape); });
        add_benchmark({"attention_backward", space, type, shape.name()},
                      [=](benchmark::State& state) { run_backward<Element>(state, exec, shape); });
      };
      add(std::type_identity<float>{}, "float");
      add(std::type_identity<bfloat16_t>{}, "bfloat16");
    }
  });
#ifdef KOKKOS_ENABLE_CUDA
  add_attention_device_benchmarks(Kokkos::Cuda{}, "cuda");
#endif
}

}  // namespace Tributary::Benchmark
