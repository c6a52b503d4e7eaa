#pragma once
#include <benchmark/benchmark.h>

#include <Kokkos_Core.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "common/benchmark.hpp"

// How calls are timed on a CUDA device.

namespace Tributary::Benchmark {

#ifdef KOKKOS_ENABLE_CUDA

inline void require_success(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

/// A copy of a device's View.
template <class View>
auto on_host(const View& view) {
  return Kokkos::create_mirror_view_and_copy(Kokkos::HostSpace{}, view);
}

/// Calls that follow one another without the host: captured in a graph, timed by the device's own clock.
class CallsOnDevice {
 public:
  template <class Call>
  CallsOnDevice(const Kokkos::Cuda& exec, int calls, const Call& call) : stream_(exec.cuda_stream()), calls_(calls) {
    require_success(cudaEventCreate(&begin_), "cudaEventCreate");
    require_success(cudaEventCreate(&end_), "cudaEventCreate");
    require_success(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    for (int i = 0; i < calls; ++i) call();
    require_success(cudaStreamEndCapture(stream_, &graph_), "cudaStreamEndCapture");
    require_success(cudaGraphInstantiate(&executable_, graph_, 0), "cudaGraphInstantiate");
  }
  ~CallsOnDevice() {
    cudaGraphExecDestroy(executable_);
    cudaGraphDestroy(graph_);
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  CallsOnDevice(const CallsOnDevice&)            = delete;
  CallsOnDevice& operator=(const CallsOnDevice&) = delete;

  /// Seconds a call, of so many graphs back to back.
  double run(int graphs = 1) const {
    float milliseconds = 0;
    require_success(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    for (int i = 0; i < graphs; ++i) require_success(cudaGraphLaunch(executable_, stream_), "cudaGraphLaunch");
    require_success(cudaEventRecord(end_, stream_), "cudaEventRecord");
    require_success(cudaEventSynchronize(end_), "cudaEventSynchronize");
    require_success(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return 1e-3 * static_cast<double>(milliseconds) / calls_ / graphs;
  }
  int calls() const { return calls_; }

 private:
  cudaStream_t    stream_;
  int             calls_;
  cudaEvent_t     begin_ = nullptr, end_ = nullptr;
  cudaGraph_t     graph_      = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

/// Seconds a call takes in a short run of a rested device, whose clock is high, and in a long run, at the power that the device can keep.
struct CallSeconds {
  double burst, sustained;

  /// Of one of so many parts of the call.
  CallSeconds operator/(double parts) const { return {burst / parts, sustained / parts}; }
};

/// A train of calls of about 5 ms.  The call must have its workspace and have run once.
template <class Call>
CallsOnDevice train(const Kokkos::Cuda& exec, const Call& call) {
  double once = CallsOnDevice(exec, 1, call).run();
  if (once < 1e-3) once = CallsOnDevice(exec, 16, call).run();
  return {exec, std::clamp(static_cast<int>(std::lround(5e-3 / once)), 1, 1000), call};
}

/// Times trains of several calls by turns.  Burst: after 60 ms of rest, the median of five; sustained: 0.35 s after 0.35 s of the same.  A
/// train that is longer than that runs once and gives both.
inline std::vector<CallSeconds> measure_by_turns(std::initializer_list<const CallsOnDevice*> trains) {
  constexpr int    rounds = 5;
  constexpr double enough = 0.35;
  struct Contender {
    const CallsOnDevice& train;
    std::vector<double>  bursts = {};

    double seconds() const { return bursts.front() * train.calls(); }
  };
  std::vector<Contender> contenders;
  for (const CallsOnDevice* train : trains) contenders.push_back({*train});
  for (int round = 0; round < rounds; ++round)
    for (auto& [train, bursts] : contenders) {
      if (round > 0 && bursts.front() * train.calls() > enough) continue;
      std::this_thread::sleep_for(std::chrono::milliseconds(60));
      bursts.push_back(train.run());
    }
  std::vector<CallSeconds> results;
  for (auto& contender : contenders) {
    auto& bursts = contender.bursts;
    if (contender.seconds() > enough) {
      results.push_back({bursts.front(), bursts.front()});
      continue;
    }
    const int trains_enough = static_cast<int>(std::ceil(enough / contender.seconds()));
    contender.train.run(trains_enough);
    const double sustained = contender.train.run(trains_enough);
    std::nth_element(bursts.begin(), bursts.begin() + rounds / 2, bursts.end());
    results.push_back({bursts[rounds / 2], sustained});
  }
  return results;
}

/// Reports what measure_by_turns gave for calls of so many flop, beside the device's own matrix product.
inline void report_rates(benchmark::State& state, double flop, const CallSeconds& call, double gemm_flop, const CallSeconds& gemm) {
  const auto report = [&](const std::string& kind, double seconds, double gemm_seconds) {
    state.counters[kind + "TFLOP/s"] = 1e-12 * flop / seconds;
    state.counters[kind + "GEMM"]    = 1e-12 * gemm_flop / gemm_seconds;
    state.counters[kind + "r"]       = flop / seconds / (gemm_flop / gemm_seconds);
  };
  report("", call.burst, gemm.burst);
  report("sustained_", call.sustained, gemm.sustained);
  state.counters["sustained_ms"] = 1e3 * call.sustained;
}

/// A benchmark that runs once: function(state) times by itself and returns its seconds.  What it throws becomes the benchmark's error.
template <class Function>
void add_device_benchmark(std::initializer_list<std::string_view> parts, const Function& function) {
  benchmark::RegisterBenchmark(name_of_benchmark(parts).c_str(),
                               [=](benchmark::State& state) {
                                 for (auto _ : state) try {
                                     state.SetIterationTime(function(state));
                                   } catch (const std::exception& error) {
                                     state.SkipWithError(error.what());
                                     break;
                                   }
                               })
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime()
      ->Iterations(1);
}

#endif

}  // namespace Tributary::Benchmark
