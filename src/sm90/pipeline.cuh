#pragma once
#include <cstdint>

// Rings of shared memory between the warps that fill them and those that use them.

namespace Tributary::Impl::SM90 {

/// A number that counts round a ring, and the parity of its round.
template <int Size>
struct RingPosition {
  int           slot  = 0;
  std::uint32_t round = 0;

  __device__ void next() {
    if (++slot == Size) {
      slot = 0;
      round ^= 1;
    }
  }
};

}  // namespace Tributary::Impl::SM90
