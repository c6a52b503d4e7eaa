#pragma once

namespace Tributary::Impl {

/// Whether the library's sm_90a code runs on this CUDA device: true on compute capability 9.0, false on every other, newer
/// ones included, since sm_90a code carries no PTX to translate.
///
/// \param device  CUDA device number, as in Kokkos::Cuda::cuda_device()
/// \throws std::runtime_error if there is no such device or it cannot be asked
bool sm90_code_runs(int device);

}  // namespace Tributary::Impl
