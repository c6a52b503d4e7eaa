#pragma once
#include <string_view>

namespace Tributary {

/// Who computes.  `automatic` takes the fastest level that supports the call; naming one forces it, and a call that the
/// named level does not support throws.  With the environment variable TRIBUTARY_LOG=1 calls whose
/// work is cut say on stderr what level and cut they took, and why not the Hopper level where device and build have it.
enum class Level {
  /// The Hopper level where it supports the call, else the portable one, which may be hundreds of times slower: docs/architecture.md, "What
  /// the Hopper level does not take", lists types, extents, alignments and strides.
  automatic,
  reference,  ///< host-serial loops with double accumulators: the definition.  Needs host-accessible memory; fences.
  portable,   ///< Kokkos::TeamPolicy kernels, any execution space
  hopper      ///< the same kernels with inner loops written for compute capability 9.0
};

constexpr std::string_view name_of(Level level) {
  switch (level) {
    case Level::reference: return "reference";
    case Level::portable: return "portable";
    case Level::hopper: return "hopper";
    default: return "automatic";
  }
}

}  // namespace Tributary
