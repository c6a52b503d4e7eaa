#pragma once
#include <Kokkos_Core.hpp>

#include <cstdint>
#include <type_traits>

/// \file
/// Element types with the same size and the same bits on every backend, in host-only builds too (where Kokkos' own half
/// types are aliases of float).  All arithmetic happens in float; these types only store.

namespace Tributary {

/// bfloat16: 1 sign, 8 exponent, 7 fraction bits.  Bit-compatible with CUDA's __nv_bfloat16 and ml_dtypes.bfloat16.
struct bfloat16_t {
  std::uint16_t bits;

  bfloat16_t() = default;
  /// Rounds to nearest even; overflows to infinity; a NaN stays a NaN.
  KOKKOS_FUNCTION explicit bfloat16_t(float value) {
    const auto word = Kokkos::bit_cast<std::uint32_t>(value);
    if ((word & 0x7fffffffu) > 0x7f800000u)
      bits = static_cast<std::uint16_t>((word >> 16) | 0x40u);
    else
      bits = static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
  }
  KOKKOS_FUNCTION operator float() const { return Kokkos::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

/// IEEE 754 binary16: 1 sign, 5 exponent, 10 fraction bits.  Bit-compatible with CUDA's __half and numpy.float16.
struct half_t {
  std::uint16_t bits;

  half_t() = default;
  /// Rounds to nearest even; overflows to infinity; a NaN stays a NaN.
  KOKKOS_FUNCTION explicit half_t(float value) {
    const auto          word      = Kokkos::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign      = (word >> 16) & 0x8000u;
    const std::uint32_t magnitude = word & 0x7fffffffu;
    std::uint32_t       rounded;
    if (magnitude > 0x7f800000u)
      rounded = 0x7e00u;
    else if (magnitude >= 0x477ff000u)  // 65520 = half way from the largest finite value to 2^16
      rounded = 0x7c00u;
    else if (magnitude < 0x38800000u)  // below 2^-14: adding 0.5 leaves multiples of 2^-24 in the low bits
      rounded = Kokkos::bit_cast<std::uint32_t>(Kokkos::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    else
      rounded = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    bits = static_cast<std::uint16_t>(sign | rounded);
  }
  KOKKOS_FUNCTION operator float() const {
    const std::uint32_t magnitude = bits & 0x7fffu;
    const std::uint32_t sign      = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t normal    = (magnitude << 13) + (112u << 23);
    const std::uint32_t special   = 0x7f800000u | (magnitude << 13);
    const std::uint32_t subnormal = Kokkos::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-24f);
    return Kokkos::bit_cast<float>(sign | (magnitude < 0x400u ? subnormal : magnitude >= 0x7c00u ? special : normal));
  }
};

/// FP8 e4m3: 1 sign, 4 exponent (bias 7), 3 fraction bits; no infinity, largest value 448, NaN = 0x7f and 0xff.
/// Bit-compatible with CUDA's __nv_fp8_e4m3 and ml_dtypes.float8_e4m3fn.
struct float8_e4m3_t {
  std::uint8_t bits;

  static constexpr float largest = 448.0f;

  float8_e4m3_t() = default;
  /// Rounds to nearest even; saturates at +-448 (infinities too); a NaN stays a NaN.
  KOKKOS_FUNCTION explicit float8_e4m3_t(float value) {
    const auto          word      = Kokkos::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign      = (word >> 24) & 0x80u;
    const std::uint32_t magnitude = word & 0x7fffffffu;
    std::uint32_t       rounded;
    if (magnitude > 0x7f800000u)
      rounded = 0x7fu;
    else if (magnitude >= 0x43e00000u)  // 448
      rounded = 0x7eu;
    else if (magnitude < 0x3c800000u)  // below 2^-6: adding 2^14 leaves multiples of 2^-9 in the low bits
      rounded = Kokkos::bit_cast<std::uint32_t>(Kokkos::bit_cast<float>(magnitude) + 16384.0f) - 0x46800000u;
    else
      rounded = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u) - (120u << 23)) >> 20;
    bits = static_cast<std::uint8_t>(sign | rounded);
  }
  KOKKOS_FUNCTION operator float() const {
    const std::uint32_t magnitude = bits & 0x7fu;
    const std::uint32_t sign      = static_cast<std::uint32_t>(bits & 0x80u) << 24;
    const std::uint32_t normal    = (magnitude << 20) + (120u << 23);
    const std::uint32_t subnormal = Kokkos::bit_cast<std::uint32_t>(static_cast<float>(magnitude) * 0x1p-9f);
    return Kokkos::bit_cast<float>(sign | (magnitude < 8u ? subnormal : magnitude == 0x7fu ? 0x7fc00000u : normal));
  }
};

static_assert(sizeof(bfloat16_t) == 2 && sizeof(half_t) == 2 && sizeof(float8_e4m3_t) == 1);
static_assert(std::is_trivial_v<bfloat16_t> && std::is_trivial_v<half_t> && std::is_trivial_v<float8_e4m3_t>);

/// What an operator's query, key or value may be made of.
template <class T>
concept Element =
    std::is_same_v<T, float> || std::is_same_v<T, bfloat16_t> || std::is_same_v<T, half_t> || std::is_same_v<T, float8_e4m3_t>;

/// The run-time name of an Element type.
enum class ElementType { float32, bfloat16, float16, float8_e4m3 };

template <Element T>
constexpr ElementType element_type() {
  if constexpr (std::is_same_v<T, float>) return ElementType::float32;
  if constexpr (std::is_same_v<T, bfloat16_t>) return ElementType::bfloat16;
  if constexpr (std::is_same_v<T, half_t>) return ElementType::float16;
  if constexpr (std::is_same_v<T, float8_e4m3_t>) return ElementType::float8_e4m3;
}

/// Calls function(std::type_identity<T>{}) for the element type named at run time.
template <class Function>
decltype(auto) visit_element_type(ElementType type, const Function& function) {
  switch (type) {
    case ElementType::bfloat16: return function(std::type_identity<bfloat16_t>{});
    case ElementType::float16: return function(std::type_identity<half_t>{});
    case ElementType::float8_e4m3: return function(std::type_identity<float8_e4m3_t>{});
    default: return function(std::type_identity<float>{});
  }
}

}  // namespace Tributary
