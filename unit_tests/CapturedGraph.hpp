#pragma once
#include "Support.hpp"

namespace TributaryTest {

#if defined(KOKKOS_ENABLE_CUDA)

/// What a call puts on an instance, captured in a CUDA graph; launched, it runs again on what the arrays then hold.
class CapturedGraph {
 public:
  template <class Call>
  CapturedGraph(const Kokkos::Cuda& exec, const Call& call) : exec_(exec) {
    call();  // modules are loaded before anything is captured
    exec.fence();
    EXPECT_EQ(cudaStreamBeginCapture(exec.cuda_stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
    call();
    EXPECT_EQ(cudaStreamEndCapture(exec.cuda_stream(), &graph_), cudaSuccess);
    EXPECT_EQ(cudaGraphInstantiate(&executable_, graph_, 0), cudaSuccess);
  }
  ~CapturedGraph() {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
  }
  CapturedGraph(const CapturedGraph&)            = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;

  /// After all other work, and waited for.
  void launch() const {
    Kokkos::fence();
    ASSERT_EQ(cudaGraphLaunch(executable_, exec_.cuda_stream()), cudaSuccess);
    exec_.fence();
  }

 private:
  Kokkos::Cuda    exec_;
  cudaGraph_t     graph_      = nullptr;
  cudaGraphExec_t executable_ = nullptr;
};

#endif

}  // namespace TributaryTest
