#include "sm90/device.hpp"

#include <cuda_runtime_api.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace Tributary::Impl {
namespace {

// Compiled like every kernel of this level, for sm_90a only: where the driver finds code for it, it finds code for all.
__global__ void probe() {}

void require_success(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // a failed question must not look like a failed kernel later
  throw std::runtime_error(std::string("Tributary: ") + call + ": " + cudaGetErrorString(status));
}

// Makes a device current and gives the former one back: the caller's choice of device is not ours to change.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    require_success(cudaGetDevice(&former_), "cudaGetDevice");
    require_success(cudaSetDevice(device), "cudaSetDevice");
  }
  ~CurrentDevice() { static_cast<void>(cudaSetDevice(former_)); }
  CurrentDevice(const CurrentDevice&)            = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int former_ = 0;
};

}  // namespace

namespace {

bool ask(int device) {
  const CurrentDevice current(device);
  cudaFuncAttributes  attributes;
  const cudaError_t   status = cudaFuncGetAttributes(&attributes, probe);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    static_cast<void>(cudaGetLastError());  // an answer, not an error
    return false;
  }
  require_success(status, "cudaFuncGetAttributes");
  return true;
}

}  // namespace

bool sm90_code_runs(int device) {
  constexpr int           devices = 64;
  static std::atomic<int> answers[devices]{};  // asked once, since every call of an operator wants to know: 0 not yet, 1 yes, 2 no
  if (device < 0 || device >= devices) return ask(device);
  if (answers[device] == 0) answers[device] = ask(device) ? 1 : 2;
  return answers[device] == 1;
}

}  // namespace Tributary::Impl
