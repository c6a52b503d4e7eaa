#pragma once
#include "Tributary_Types.hpp"

using __half = Tributary::half_t;

inline __half __ushort_as_half(unsigned short bits) {
  __half value;
  value.bits = bits;
  return value;
}
inline float __half2float(__half value) { return static_cast<float>(value); }
