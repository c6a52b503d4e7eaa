#pragma once
#include <cstdint>

#include "Tributary_Types.hpp"
#include "instructions.hpp"

namespace Tributary::Impl::SM90::ptx {

inline float cvt_f32_f16(std::uint16_t bits) {
  half_t half;
  half.bits = bits;
  return half;
}

inline std::uint32_t cvt_e4m3x4_f32(float first, float second, float third, float fourth) {
  return TributaryTest::Emulator::convert_four_to_e4m3(first, second, third, fourth);
}

}  // namespace Tributary::Impl::SM90::ptx
