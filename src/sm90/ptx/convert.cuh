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

/// Four numbers as e4m3, the first one in the lowest byte; nearest even, saturating.
__device__ inline std::uint32_t cvt_e4m3x4_f32(float first, float second, float third, float fourth) {
  std::uint32_t result;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}\n"
      : "=r"(result)
      : "f"(first), "f"(second), "f"(third), "f"(fourth));
  return result;
}

}  // namespace Tributary::Impl::SM90::ptx
