#pragma once
#include <bit>

#include "Tributary_Types.hpp"

using __half = Tributary::half_t;

inline __half __ushort_as_half(unsigned short bits) {
  __half value;
  value.bits = bits;
  return value;
}

/// The device's conversion makes one NaN of all.
inline float __half2float(__half value) {
  const float converted = static_cast<float>(value);
  return converted == converted ? converted : std::bit_cast<float>(0x7fffffffu);
}
