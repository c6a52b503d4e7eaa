#pragma once
#include <benchmark/benchmark.h>

#include <Kokkos_Core.hpp>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "common/workers.hpp"
#include "program/allocation_meter.hpp"
#include "program/backend.hpp"

// What the benchmarks of all operators share: each defines add_benchmarks(), perf/common/main.cpp runs them.

namespace Tributary::Benchmark {

/// Registers this operator's benchmarks; called after Kokkos::initialize.
void add_benchmarks();

/// Calls function(execution space instance, its name) for every space of this build.
template <class Function>
void for_each_space(const Function& function) {
  const auto call = [&](const auto& backend) {
    function(typename std::remove_cvref_t<decltype(backend)>::execution_space{}, std::string(backend.name));
  };
  std::apply([&](const auto&... backend) { (call(backend), ...); }, Program::backends);
}

/// The same for host spaces.
template <class Function>
void for_each_host_space(const Function& function) {
  for_each_space([&](const auto& exec, const std::string& name) {
    if constexpr (Impl::host_memory<std::remove_cvref_t<decltype(exec)>>) function(exec, name);
  });
}

/// Warms, notes the peak of what a call allocates, then times calls up to their fence; returns the seconds a call takes.
template <class Exec, class Call>
double measure(benchmark::State& state, const Exec& exec, const Call& call) {
  call();
  exec.fence("Tributary benchmark: warm");
  {
    const Program::AllocationMeter meter;
    call();
    exec.fence("Tributary benchmark: memory");
    state.counters["peak_bytes"] = static_cast<double>(meter.peak_bytes());
  }
  double seconds = 0;
  for (auto _ : state) {
    const Kokkos::Timer timer;
    call();
    exec.fence("Tributary benchmark: time");
    const double this_call = timer.seconds();
    state.SetIterationTime(this_call);
    seconds += this_call;
  }
  state.counters["threads"] = exec.concurrency();
  return seconds / static_cast<double>(state.iterations());
}

/// The parts with slashes between them.
inline std::string name_of_benchmark(std::initializer_list<std::string_view> parts) {
  std::string name;
  for (const auto part : parts) name.append(name.empty() ? "" : "/").append(part);
  return name;
}

/// A benchmark named by the parts.
template <class Function>
void add_benchmark(std::initializer_list<std::string_view> parts, const Function& function) {
  benchmark::RegisterBenchmark(name_of_benchmark(parts).c_str(), function)
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime()
      ->Repetitions(5)
      ->ReportAggregatesOnly();
}

}  // namespace Tributary::Benchmark
