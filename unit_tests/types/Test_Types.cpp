#include <cmath>
#include <limits>

#include "Support.hpp"

// Storage types against their definition: sign, exponent, fraction.

namespace TributaryTest {
namespace {

using Tributary::ElementType;

/// The layout of a type and the codes of its special values.
template <class T>
struct Format;
template <>
struct Format<bfloat16_t> {
  using Bits                          = std::uint16_t;
  static constexpr int  exponent_bits = 8, fraction_bits = 7;
  static constexpr bool has_infinity = true;
};
template <>
struct Format<half_t> {
  using Bits                          = std::uint16_t;
  static constexpr int  exponent_bits = 5, fraction_bits = 10;
  static constexpr bool has_infinity = true;
};
template <>
struct Format<float8_e4m3_t> {
  using Bits                          = std::uint8_t;
  static constexpr int  exponent_bits = 4, fraction_bits = 3;
  static constexpr bool has_infinity = false;
};

template <class T>
class StorageType : public testing::Test {
 public:
  using F                                     = Format<T>;
  static constexpr bool          has_infinity = F::has_infinity;
  static constexpr std::uint32_t ones         = (1u << F::exponent_bits) - 1;
  static constexpr std::uint32_t sign         = 1u << (F::exponent_bits + F::fraction_bits);
  /// The least positive code that is not finite: infinity, or e4m3's only NaN.
  static constexpr std::uint32_t beyond = F::has_infinity ? ones << F::fraction_bits : sign - 1;

  /// (1 + fraction) * 2^(exponent - bias), without the 1 and with the least exponent where the exponent field is 0.  For `beyond` it
  /// is the value that would come next, where rounding to infinity begins half way.
  static double value_of(std::uint32_t code) {
    const std::uint32_t fraction = code & ((1u << F::fraction_bits) - 1), exponent = (code & (sign - 1)) >> F::fraction_bits;
    const int           bias      = (1 << (F::exponent_bits - 1)) - 1;
    const double        magnitude = exponent == 0
                                        ? std::ldexp(fraction, 1 - bias - F::fraction_bits)
                                        : std::ldexp((1u << F::fraction_bits) + fraction, static_cast<int>(exponent) - bias - F::fraction_bits);
    return (code & sign) != 0 ? -magnitude : magnitude;
  }
  static bool is_nan(std::uint32_t code) { return F::has_infinity ? (code & (sign - 1)) > beyond : (code & (sign - 1)) == beyond; }

  static T from_bits(std::uint32_t code) {
    T value;
    value.bits = static_cast<typename F::Bits>(code);
    return value;
  }
  static void expect_code(float value, std::uint32_t code) {
    if (T(value).bits != code || T(-value).bits != (code ^ sign))
      ADD_FAILURE() << value << " and its negative become " << std::hex << T(value).bits << " and " << T(-value).bits << ", expected "
                    << code;
  }
};

using StorageTypes = testing::Types<bfloat16_t, half_t, float8_e4m3_t>;
TYPED_TEST_SUITE(StorageType, StorageTypes);

TYPED_TEST(StorageType, EveryCodeDecodesToItsValue) {
  for (std::uint32_t code = 0; code < 2 * this->sign; ++code) {
    const float value = static_cast<float>(this->from_bits(code));
    if (this->is_nan(code)) {
      ASSERT_TRUE(std::isnan(value)) << std::hex << code;
    } else if (this->has_infinity && (code & (this->sign - 1)) == this->beyond) {
      ASSERT_EQ(value, (code & this->sign) != 0 ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity());
    } else {
      ASSERT_EQ(bits_of(value), bits_of(static_cast<float>(this->value_of(code)))) << std::hex << code;
    }
  }
}

TYPED_TEST(StorageType, EveryValueEncodesToItsCode) {
  for (std::uint32_t code = 0; code < this->beyond; ++code) this->expect_code(static_cast<float>(this->value_of(code)), code);
}

TYPED_TEST(StorageType, MidpointsRoundToEvenAndTheirNeighboursToTheNearest) {
  const std::uint32_t last = this->has_infinity ? this->beyond : this->beyond - 1;
  for (std::uint32_t code = 0; code < last; ++code) {
    const float middle = static_cast<float>((this->value_of(code) + this->value_of(code + 1)) / 2);
    ASSERT_EQ(middle, (this->value_of(code) + this->value_of(code + 1)) / 2) << "not a float";
    this->expect_code(middle, code % 2 == 0 ? code : code + 1);
    this->expect_code(std::nextafter(middle, 0.0f), code);
    this->expect_code(std::nextafter(middle, std::numeric_limits<float>::infinity()), code + 1);
  }
}

TYPED_TEST(StorageType, WhatIsTooLargeBecomesInfinityOrSaturates) {
  const std::uint32_t most = this->has_infinity ? this->beyond : this->beyond - 1;
  this->expect_code(std::numeric_limits<float>::max(), most);
  this->expect_code(std::numeric_limits<float>::infinity(), most);
}

TYPED_TEST(StorageType, NanStaysNan) {
  // quiet, signalling, and with a payload only in the bits that are cut off
  for (const std::uint32_t bits : {0x7fc00000u, 0x7f800001u, 0x7fa00000u, 0x7f80ffffu, 0x7fffffffu, 0xffc00000u, 0xff800001u}) {
    const TypeParam value(Kokkos::bit_cast<float>(bits));
    EXPECT_TRUE(this->is_nan(value.bits)) << std::hex << bits << " became " << value.bits;
    EXPECT_TRUE(std::isnan(static_cast<float>(value)));
  }
}

TYPED_TEST(StorageType, TinyFloatsKeepTheirSign) {
  EXPECT_EQ(TypeParam(0.0f).bits, 0u);
  EXPECT_EQ(TypeParam(-0.0f).bits, this->sign);
  EXPECT_EQ(bits_of(static_cast<float>(this->from_bits(this->sign))), 0x80000000u);
  this->expect_code(std::numeric_limits<float>::denorm_min(), 0);
}

template <class T>
void round_trip_in_space(const View<float, 1>& values, const View<typename Format<T>::Bits, 1>& codes, const View<float, 1>& decoded) {
  Kokkos::parallel_for(
      "round_trip", Kokkos::RangePolicy<Space>(0, static_cast<std::int64_t>(values.extent(0))), KOKKOS_LAMBDA(const std::int64_t i) {
        const T value(values(i));
        codes(i)   = value.bits;
        decoded(i) = static_cast<float>(value);
      });
}

TYPED_TEST(StorageType, TheDeviceGivesTheSameBits) {
  std::vector<float> values;
  for (std::uint32_t code = 0; code < this->beyond; ++code)
    for (const double at : {this->value_of(code), (this->value_of(code) + this->value_of(code + 1)) / 2})
      for (const float value : {static_cast<float>(at), std::nextafter(static_cast<float>(at), 0.0f)})
        values.insert(values.end(), {value, -value});
  for (const std::uint32_t bits : {0x00000001u, 0x007fffffu, 0x7f7fffffu, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u})
    values.push_back(Kokkos::bit_cast<float>(bits));
  const auto given = in_space(row(values));
  using Bits       = typename Format<TypeParam>::Bits;
  const View<Bits, 1>  codes("codes", values.size());
  const View<float, 1> decoded("decoded", values.size());
  round_trip_in_space<TypeParam>(given, codes, decoded);
  const auto codes_there = from_space<1>(codes);
  const auto values_back = from_space<1>(decoded);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const TypeParam expected(values[i]);
    ASSERT_EQ(codes_there.values[i], expected.bits) << values[i];
    if (std::isnan(static_cast<float>(expected)))
      ASSERT_TRUE(std::isnan(values_back.values[i]));
    else
      ASSERT_EQ(bits_of(values_back.values[i]), bits_of(static_cast<float>(expected))) << values[i];
  }
}

TEST(StorageTypes, Float8SaturatesRightAbove448) {
  for (const float value :
       {448.0f, std::nextafter(448.0f, 449.0f), 463.0f, 464.0f, 465.0f, 479.0f, 480.0f, 511.0f, 512.0f, 513.0f, 1e30f}) {
    EXPECT_EQ(float8_e4m3_t(value).bits, 0x7e) << value;
    EXPECT_EQ(float8_e4m3_t(-value).bits, 0xfe) << value;
  }
}

TEST(StorageTypes, HaveTheSizeOfTheirFormat) {
  EXPECT_EQ(sizeof(bfloat16_t), 2u);
  EXPECT_EQ(sizeof(half_t), 2u);
  EXPECT_EQ(sizeof(float8_e4m3_t), 1u);
  EXPECT_EQ(sizeof(bfloat16_t[3]), 6u);
  EXPECT_EQ(sizeof(float8_e4m3_t[3]), 3u);
}

TEST(StorageTypes, AreNamedAtRunTime) {
  EXPECT_EQ(Tributary::element_type<float>(), ElementType::float32);
  EXPECT_EQ(Tributary::element_type<bfloat16_t>(), ElementType::bfloat16);
  EXPECT_EQ(Tributary::element_type<half_t>(), ElementType::float16);
  EXPECT_EQ(Tributary::element_type<float8_e4m3_t>(), ElementType::float8_e4m3);
  for (const auto type : {ElementType::float32, ElementType::bfloat16, ElementType::float16, ElementType::float8_e4m3})
    EXPECT_EQ(Tributary::visit_element_type(type, []<class T>(std::type_identity<T>) { return Tributary::element_type<T>(); }), type);
}

}  // namespace
}  // namespace TributaryTest
