#pragma once
#include <cstdint>

#include "Tributary_Types.hpp"

namespace Tributary::Impl::SM90::ptx {

inline float cvt_f32_f16(std::uint16_t bits) {
  half_t half;
  half.bits = bits;
  return half;
}

}  // namespace Tributary::Impl::SM90::ptx
