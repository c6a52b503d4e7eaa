#include <Tributary_Attention.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include "common/benchmark.hpp"
#include "common/machine.hpp"
#include "common/random.hpp"

// attention_forward and attention_backward on the CPU.  Counters: GFLOP/s of legal work (forward 4 D, backward 10 D flop a legal pair and
// head; what the backward pass computes twice counts once); of_SGEMM, that rate as a fraction of the machine's own SGEMM, which is SGEMM
// GFLOP/s; GB/s of inputs and outputs, each once.

namespace Tributary::Benchmark {

namespace {

struct Shape {
  std::int64_t length, heads, head_dim;
  bool         causal;

  std::string name() const {
    return "S" + std::to_string(length) + "_H" + std::to_string(heads) + "_D" + std::to_string(head_dim) + (causal ? "_causal" : "_full");
  }
  double legal_pairs() const { return static_cast<double>(causal ? length * (length + 1) / 2 : length * length); }
};

constexpr Shape shapes[] = {{.length = 2048, .heads = 8, .head_dim = 64, .causal = false},
                            {.length = 2048, .heads = 8, .head_dim = 64, .causal = true},
                            {.length = 2048, .heads = 8, .head_dim = 128, .causal = false},
                            {.length = 2048, .heads = 8, .head_dim = 128, .causal = true}};

template <class Element>
using Heads = Kokkos::View<Element***, Kokkos::LayoutRight, Kokkos::HostSpace>;

template <class Element>
struct Forward {
  Heads<Element>                                                query, key, value, out;
  Kokkos::View<float**, Kokkos::LayoutRight, Kokkos::HostSpace> lse;
  AttentionOptions                                              options;

  explicit Forward(const Shape& shape)
      : query(random<Element***>("query", 1, shape.length, shape.heads, shape.head_dim)),
        key(random<Element***>("key", 2, shape.length, shape.heads, shape.head_dim)),
        value(random<Element***>("value", 3, shape.length, shape.heads, shape.head_dim)),
        out(output<Element***>("out", shape.length, shape.heads, shape.head_dim)),
        lse(output<float**>("lse", shape.heads, shape.length)),
        options{.causal = shape.causal} {}

  template <class Exec>
  void run(const Exec& exec) const {
    attention_forward(exec, query, key, value, out, lse, options);
  }
  double bytes() const { return static_cast<double>(4 * sizeof(Element) * query.size() + sizeof(float) * lse.size()); }
};

template <class Element>
struct Backward {
  Forward<Element> forward;
  Heads<Element>   grad_out, grad_query, grad_key, grad_value;

  explicit Backward(const Shape& shape)
      : forward(shape),
        grad_out(random<Element***>("grad_out", 4, shape.length, shape.heads, shape.head_dim)),
        grad_query(output<Element***>("grad_query", shape.length, shape.heads, shape.head_dim)),
        grad_key(output<Element***>("grad_key", shape.length, shape.heads, shape.head_dim)),
        grad_value(output<Element***>("grad_value", shape.length, shape.heads, shape.head_dim)) {}

  template <class Exec>
  void run(const Exec& exec) const {
    const auto& [query, key, value, out, lse, options] = forward;
    attention_backward(exec, query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options);
  }
  double bytes() const { return forward.bytes() + static_cast<double>(4 * sizeof(Element) * grad_out.size()); }
};

template <class Exec>
void report(benchmark::State& state, const Exec& exec, const Shape& shape, int products_a_pair, double bytes, double seconds) {
  const double flop_rate     = 2.0 * products_a_pair * static_cast<double>(shape.heads * shape.head_dim) * shape.legal_pairs() / seconds;
  state.counters["GFLOP/s"]  = 1e-9 * flop_rate;
  state.counters["of_SGEMM"] = flop_rate / sgemm_rate(exec);
  state.counters["SGEMM"]    = 1e-9 * sgemm_rate(exec);
  state.counters["GB/s"]     = 1e-9 * bytes / seconds;
}

template <class Element, class Exec>
void run_forward(benchmark::State& state, const Exec& exec, const Shape& shape) {
  const Forward<Element> forward(shape);
  const double           seconds = measure(state, exec, [&] { forward.run(exec); });
  report(state, exec, shape, 2, forward.bytes(), seconds);
}

template <class Element, class Exec>
void run_backward(benchmark::State& state, const Exec& exec, const Shape& shape) {
  const Backward<Element> backward(shape);
  backward.forward.run(exec);
  const double seconds = measure(state, exec, [&] { backward.run(exec); });
  report(state, exec, shape, 5, backward.bytes(), seconds);
}

}  // namespace

void add_benchmarks() {
  benchmark::AddCustomContext("sgemm", sgemm_name());
  for_each_host_space([]<class Exec>(const Exec& exec, const std::string& space) {
    for (const Shape& shape : shapes) {
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
}

}  // namespace Tributary::Benchmark
