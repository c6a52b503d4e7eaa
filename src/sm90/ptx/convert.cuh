#pragma once
#include <cstdint>

// Conversions.

namespace Tributary::Impl::SM90::ptx {

/// Of a half's bits.
__device__ inline float cvt_f32_f16(std::uint16_t bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
}

}  // namespace Tributary::Impl::SM90::ptx
