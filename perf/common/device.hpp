#pragma once
#include <benchmark/benchmark.h>

#include <Kokkos_Core.hpp>
#include <algorithm>
#include <stdexcept>
#include <string>

// How calls are timed on a CUDA device.

namespace Tributary::Benchmark {

#ifdef KOKKOS_ENABLE_CUDA

inline void require_success(cudaError_t status, const char* call) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
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

  /// Seconds a call.
  double run() const {
    float milliseconds = 0;
    require_success(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    require_success(cudaGraphLaunch(executable_, stream_), "cudaGraphLaunch");
    require_success(cudaEventRecord(end_, stream_), "cudaEventRecord");
    require_success(cudaEventSynchronize(end_), "cudaEventSynchronize");
    require_success(cudaEventElapsedTime(&milliseconds, begin_, end_), "cudaEventElapsedTime");
    return 1e-3 * static_cast<double>(milliseconds) / calls_;
  }

 private:
  cudaStream_t    stream_;
  int             calls_;
  cudaEvent_t     begin_ = nullptr, end_ = nullptr;
  cudaGraph_t     graph_      = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

/// Warms, then times calls back to back, enough of them to fill some milliseconds; returns the seconds a call takes.  The call must have
/// its workspace.
template <class Call>
double measure_on_device(benchmark::State& state, const Kokkos::Cuda& exec, const Call& call) {
  call();  // what is set up at a kernel's first launch cannot be captured
  exec.fence("Tributary benchmark: warm");
  const double        once = CallsOnDevice(exec, 4, call).run();
  const CallsOnDevice calls(exec, std::clamp(static_cast<int>(5e-3 / once), 1, 500), call);
  calls.run();
  double seconds = 0;
  for (auto _ : state) {
    const double this_call = calls.run();
    state.SetIterationTime(this_call);
    seconds += this_call;
  }
  return seconds / static_cast<double>(state.iterations());
}

#endif

}  // namespace Tributary::Benchmark
