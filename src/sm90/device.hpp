#pragma once
#include <Kokkos_Core.hpp>
#include <type_traits>

#include "Tributary_Config.hpp"

namespace Tributary::Impl {

/// Whether this build has the Hopper level for an execution space.
#if defined(TRIBUTARY_ENABLE_SM90)
template <class Exec>
inline constexpr bool has_sm90 = std::is_same_v<Exec, Kokkos::Cuda>;
#else
template <class Exec>
inline constexpr bool has_sm90 = false;
#endif

/// The first reason why a call cannot take the level, when it is not the call's.
inline constexpr const char* no_sm90 = "it is for CUDA, in builds with Tributary_ENABLE_SM90";

/// Whether the library's sm_90a code runs on this CUDA device: true on compute capability 9.0, false on every other, newer
/// ones included, since sm_90a code carries no PTX to translate.
///
/// \param device  CUDA device number, as in Kokkos::Cuda::cuda_device()
/// \throws std::runtime_error if there is no such device or it cannot be asked
bool sm90_code_runs(int device);

}  // namespace Tributary::Impl
