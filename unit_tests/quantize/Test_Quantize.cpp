#include <cmath>
#include <numeric>

#include "ExpectedTopk.hpp"
#include "KokkosEvents.hpp"

namespace TributaryTest {
namespace {

struct Quantized {
  Array<float8_e4m3_t, 4> values;
  Array<float, 3>         scales;
};

template <class Value>
Quantized quantized_of(Level level, const Array<Value, 4>& values) {
  const auto [a, b, c, d] = values.extents;
  const auto in           = in_space(values);
  const auto quantized    = in_space(Array<float8_e4m3_t, 4>({a, b, c, d}, float8_e4m3_t(7.0f)));
  const auto scales       = in_space(Array<float, 3>({a, b, c}, -7.0f));
  Tributary::quantize_e4m3(Space{}, in, quantized, scales, {.level = level});
  return {from_space<4>(quantized), from_space<3>(scales)};
}

/// The e4m3 value nearest to a float, ties to the even code: by trying all.
float8_e4m3_t nearest(float value) {
  float8_e4m3_t best;
  best.bits = 0x7f;
  if (std::isnan(value)) return best;
  double least = std::numeric_limits<double>::infinity();
  for (std::uint8_t code = 0; code < 0x7f; ++code) {
    float8_e4m3_t candidate;
    candidate.bits        = code;
    const double distance = std::isinf(value)
                                ? 448.0 - static_cast<double>(static_cast<float>(candidate))
                                : std::abs(std::abs(static_cast<double>(value)) - static_cast<double>(static_cast<float>(candidate)));
    if (distance < least || (distance == least && code % 2 == 0)) {
      least     = distance;
      best.bits = code;
    }
  }
  if (std::signbit(value)) best.bits |= 0x80u;
  return best;
}

/// scale = largest finite magnitude / 448, or 1 where that is zero; quantized = nearest(value / scale).
template <class Value>
Quantized expected_quantized(const Array<Value, 4>& values) {
  const auto& extents = values.extents;
  const auto  d       = extents[3];
  Quantized   result{Array<float8_e4m3_t, 4>(extents), Array<float, 3>({extents[0], extents[1], extents[2]})};
  for (std::size_t row = 0; row < result.scales.values.size(); ++row) {
    const auto at = [&](std::int64_t i) {
      return static_cast<float>(values.values[row * static_cast<std::size_t>(d) + static_cast<std::size_t>(i)]);
    };
    float largest = 0;
    for (std::int64_t i = 0; i < d; ++i)
      if (std::isfinite(at(i))) largest = std::max(largest, std::abs(at(i)));
    const float scale         = largest / 448.0f == 0.0f ? 1.0f : largest / 448.0f;
    result.scales.values[row] = scale;
    for (std::int64_t i = 0; i < d; ++i)
      result.values.values[row * static_cast<std::size_t>(d) + static_cast<std::size_t>(i)] = nearest(at(i) / scale);
  }
  return result;
}

class QuantizeE4m3 : public LevelTest {
 public:
  template <class Value>
  static void expect_right(const Array<Value, 4>& values) {
    const Quantized given = quantized_of(level(), values), expected = expected_quantized(values);
    EXPECT_TRUE(same_bits(given.scales, expected.scales)) << "(scales)";
    for (std::size_t i = 0; i < expected.values.values.size(); ++i) {
      const float8_e4m3_t value = given.values.values[i], wanted = expected.values.values[i];
      // either NaN is one
      ASSERT_TRUE(value.bits == wanted.bits || (wanted.bits == 0x7f && value.bits == 0xff))
          << "value " << i << ", " << static_cast<float>(values.values[i]) << ", became " << static_cast<float>(value) << ", expected "
          << static_cast<float>(wanted);
    }
  }
  static void expect_row_right(const std::vector<float>& row) {
    Array<float, 4> values({1, 1, 1, static_cast<std::int64_t>(row.size())});
    values.values = row;
    expect_right(values);
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, QuantizeE4m3, testing::ValuesIn(all_levels()), level_name);

TEST_P(QuantizeE4m3, TheLargestMagnitudeBecomes448) {
  Array<float, 4> values({1, 1, 2, 3});
  values.values          = {1, -896, 2, 0.5f, 0.25f, -0.125f};
  const Quantized result = quantized_of(level(), values);
  EXPECT_EQ(result.scales.values, (std::vector<float>{2, 0.5f / 448}));
  EXPECT_EQ(static_cast<float>(result.values.values[1]), -448);
  EXPECT_EQ(static_cast<float>(result.values.values[0]), 0.5f);
  EXPECT_EQ(static_cast<float>(result.values.values[3]), 448);
  EXPECT_EQ(static_cast<float>(result.values.values[4]), 224);
  EXPECT_EQ(static_cast<float>(result.values.values[5]), -112);
}

TEST_P(QuantizeE4m3, AZeroRowHasScaleOne) {
  Array<float, 4> values({1, 1, 2, 5});
  values.values[7]       = -0.0f;
  const Quantized result = quantized_of(level(), values);
  EXPECT_EQ(result.scales.values, (std::vector<float>{1, 1}));
  for (std::size_t i = 0; i < 10; ++i) EXPECT_EQ(result.values.values[i].bits, i == 7 ? 0x80 : 0);
}

TEST_P(QuantizeE4m3, InfinitiesSaturateAndNanStaysWithoutTouchingTheScale) {
  expect_row_right({1, infinity, -infinity, nan, -3.5f});
  Array<float, 4> values({1, 1, 1, 4});
  values.values          = {infinity, nan, 4.48f, -infinity};
  const Quantized result = quantized_of(level(), values);
  EXPECT_FLOAT_EQ(result.scales.values[0], 0.01f);
  EXPECT_EQ(static_cast<float>(result.values.values[0]), 448);
  EXPECT_TRUE(std::isnan(static_cast<float>(result.values.values[1])));
  EXPECT_EQ(static_cast<float>(result.values.values[3]), -448);
}

TEST_P(QuantizeE4m3, ARowWithoutAFiniteValueHasScaleOne) {
  for (const auto& row : {std::vector<float>{nan, nan}, {infinity, -infinity}, {nan, infinity, 0}, {nan}}) {
    Array<float, 4> values({1, 1, 1, static_cast<std::int64_t>(row.size())});
    values.values = row;
    EXPECT_EQ(quantized_of(level(), values).scales.values, (std::vector<float>{1}));
    expect_row_right(row);
  }
  EXPECT_EQ(quantized_of(level(), Array<float, 4>({1, 1, 3, 0})).scales.values, (std::vector<float>{1, 1, 1}));  // nor any value at all
}

TEST_P(QuantizeE4m3, SubnormalRowsKeepAPositiveScale) {
  for (const float largest : {1e-45f, 3e-43f, 7e-43f, 1e-42f, 1.1754942e-38f, 1e-37f, 3.4028235e38f}) {
    SCOPED_TRACE(largest);
    expect_row_right({largest, -largest / 2, largest / 7, 0});
  }
}

template <class Value>
void random_rows(const std::array<std::int64_t, 4>& shape, void (*expect_right)(const Array<Value, 4>&)) {
  SCOPED_TRACE(seed_text());
  Random          random;
  Array<Value, 4> values(shape);
  for (std::size_t i = 0; i < values.values.size(); ++i) values.values[i] = Value(std::ldexp(random.normal(), random.integer<int>(-12, 3)));
  expect_right(values);
}

TEST_P(QuantizeE4m3, RowsOfEveryType) {
  for (const std::array<std::int64_t, 4>& shape : {std::array<std::int64_t, 4>{1, 1, 1, 1},
                                                   {2, 3, 5, 31},
                                                   {1, 2, 7, 32},
                                                   {3, 1, 2, 33},
                                                   {1, 1, 4, 128},
                                                   {1, 1, 1, 1000},
                                                   {2, 0, 3, 4},
                                                   {0, 1, 1, 4}}) {
    random_rows<float>(shape, &QuantizeE4m3::expect_right<float>);
    random_rows<bfloat16_t>(shape, &QuantizeE4m3::expect_right<bfloat16_t>);
    random_rows<half_t>(shape, &QuantizeE4m3::expect_right<half_t>);
  }
}

/// Blocks of 128 rows of a head: what one row with all of a block's values would give.
template <class Value>
void expect_blocks_right(Level level, const std::array<std::int64_t, 4>& shape) {
  SCOPED_TRACE(seed_text());
  Random          random(3);
  Array<Value, 4> values(shape);
  const auto [b, rows, h, d] = shape;
  const std::int64_t blocks  = (rows + 127) / 128;
  for (auto& value : values.values) value = Value(std::ldexp(random.normal(), random.integer<int>(-12, 3)));
  const auto quantized = in_space(Array<float8_e4m3_t, 4>(shape, float8_e4m3_t(7.0f)));
  const auto scales    = in_space(Array<float, 3>({b, h, blocks}, -7.0f));
  Tributary::quantize_e4m3_heads(Space{}, in_space(values), quantized, scales, {.level = level});
  const auto given        = from_space<4>(quantized);
  const auto given_scales = from_space<3>(scales);
  for (std::int64_t batch = 0; batch < b; ++batch)
    for (std::int64_t head = 0; head < h; ++head)
      for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t first = 128 * block, count = std::min<std::int64_t>(128, rows - first);
        Array<Value, 4>    together({1, 1, 1, count * d});
        for (std::int64_t i = 0; i < count * d; ++i) together(0, 0, 0, i) = values(batch, first + i / d, head, i % d);
        const Quantized expected = expected_quantized(together);
        ASSERT_EQ(given_scales(batch, head, block), expected.scales.values[0]);
        for (std::int64_t i = 0; i < count * d; ++i)
          ASSERT_EQ(given(batch, first + i / d, head, i % d).bits, expected.values(0, 0, 0, i).bits);
      }
}
TEST_P(QuantizeE4m3, BlocksOfHeads) {
  for (const std::array<std::int64_t, 4>& shape : {std::array<std::int64_t, 4>{1, 1, 1, 1},
                                                   {2, 127, 3, 5},
                                                   {1, 128, 2, 16},
                                                   {2, 129, 2, 33},
                                                   {1, 300, 2, 64},
                                                   {1, 0, 2, 8},
                                                   {1, 5, 2, 0}}) {
    expect_blocks_right<float>(level(), shape);
    expect_blocks_right<bfloat16_t>(level(), shape);
    expect_blocks_right<half_t>(level(), shape);
  }
}

TEST_P(QuantizeE4m3, BlocksOfHeadsRefuseOtherScales) {
  const View<float, 4>         values("values", 2, 130, 3, 8);
  const View<float8_e4m3_t, 4> quantized("quantized", 2, 130, 3, 8);
  expect_refusal(
      [&] { Tributary::quantize_e4m3_heads(Space{}, values, quantized, View<float, 3>("scales", 2, 130, 3), {.level = level()}); },
      {"quantize_e4m3_heads: scales is [2, 130, 3]", "expected scales [2, 3, 2]"});
}

TEST_P(QuantizeE4m3, MidpointsRoundToEven) {
  std::vector<float> row = {448};
  for (int code = 0; code < 0x7e; ++code) {
    float8_e4m3_t low, high;
    low.bits  = static_cast<std::uint8_t>(code);
    high.bits = static_cast<std::uint8_t>(code + 1);
    row.push_back((static_cast<float>(low) + static_cast<float>(high)) / 2);
    row.push_back(-row.back());
  }
  expect_row_right(row);
}

TEST_P(QuantizeE4m3, ValuesSurviveTheRoundTrip) {
  SCOPED_TRACE(seed_text());
  Random          random(1);
  Array<float, 4> values({1, 1, 50, 64});
  random.fill_with_normals(values);
  const Quantized result = quantized_of(level(), values);
  for (std::int64_t r = 0; r < 50; ++r)
    for (std::int64_t i = 0; i < 64; ++i) {
      const float value = values(0, 0, r, i), scale = result.scales(0, 0, r);
      // half a unit of 3 fraction bits, 2^-4 of the value, or of the least exponent, 2^-10 of the scale
      EXPECT_LE(std::abs(static_cast<float>(result.values(0, 0, r, i)) * scale - value),
                std::max(0x1.00002p-4f * std::abs(value), 0x1.00002p-10f * scale));
    }
}

TEST_P(QuantizeE4m3, TwoAndThreeDimensionsAndStrides) {
  Random          random(2);
  Array<float, 4> values({1, 2, 3, 10});
  random.fill_with_normals(values);
  const Quantized expected = expected_quantized(values);
  const auto      in       = in_space(values);
  {
    const View<float8_e4m3_t, 3> quantized("quantized", 2, 3, 10);
    const View<float, 2>         scales("scales", 2, 3);
    Tributary::quantize_e4m3(Space{}, Kokkos::subview(in, 0, Kokkos::ALL, Kokkos::ALL, Kokkos::ALL), quantized, scales, {.level = level()});
    EXPECT_EQ(from_space<2>(scales).values, expected.scales.values);
    EXPECT_TRUE(same_bits(from_space<3>(quantized), [&] {
      Array<float8_e4m3_t, 3> three({2, 3, 10});
      three.values = expected.values.values;
      return three;
    }()));
  }
  // rows 1 of both, each a row apart in a wider output
  const View<float8_e4m3_t, 3> quantized("quantized", 2, 2, 14);
  const View<float, 2>         scales("scales", 2, 2);
  Kokkos::deep_copy(scales, -7);
  Tributary::quantize_e4m3(Kokkos::subview(in, 0, Kokkos::ALL, 1, Kokkos::ALL),
                           Kokkos::subview(quantized, Kokkos::ALL, 1, Kokkos::pair(2, 12)),
                           Kokkos::View<float*, Kokkos::LayoutRight, Memory>(scales.data(), 2), {.level = level()});
  const auto wide = from_space<3>(quantized);
  const auto two  = from_space<2>(scales);
  for (std::int64_t r = 0; r < 2; ++r) {
    EXPECT_EQ(two.values[static_cast<std::size_t>(r)], expected.scales(0, r, 1));
    for (std::int64_t i = 0; i < 14; ++i) {
      EXPECT_EQ(wide(r, 0, i).bits, 0);
      EXPECT_EQ(wide(r, 1, i).bits, 2 <= i && i < 12 ? expected.values(0, r, 1, i - 2).bits : 0);
    }
  }
}

class QuantizeErrors : public testing::Test {
 public:
  View<float, 3>         values{"values", 2, 3, 8};
  View<float8_e4m3_t, 3> quantized{"quantized", 2, 3, 8};
  View<float, 2>         scales{"scales", 2, 3};

  QuantizeErrors() { Kokkos::deep_copy(scales, 7); }
  ~QuantizeErrors() override {
    EXPECT_TRUE(same_bits(from_space<3>(quantized), Array<float8_e4m3_t, 3>({2, 3, 8}))) << "quantized was touched";
    EXPECT_TRUE(same_bits(from_space<2>(scales), Array<float, 2>({2, 3}, 7))) << "scales were touched";
  }
  template <class Values, class Output, class Scales>
  static void expect_refused(const Values& values, const Output& quantized, const Scales& scales,
                             std::initializer_list<std::string_view> parts, Level level = Level::automatic) {
    expect_refusal([&] { Tributary::quantize_e4m3(Space{}, values, quantized, scales, {.level = level}); }, parts);
  }
};

TEST_F(QuantizeErrors, MismatchedExtents) {
  expect_refused(values, View<float8_e4m3_t, 3>("quantized", 2, 3, 9), scales,
                 {"Tributary: quantize_e4m3: quantized is [1, 2, 3, 9], values is [1, 2, 3, 8]"});
  expect_refused(values, View<float8_e4m3_t, 3>("quantized", 2, 4, 8), scales,
                 {"quantize_e4m3: quantized is [1, 2, 4, 8], values is [1, 2, 3, 8]"});
  expect_refused(values, quantized, View<float, 2>("scales", 2, 4), {"quantize_e4m3: scales is [1, 2, 4], values is [1, 2, 3, 8]"});
  expect_refused(values, quantized, View<float, 2>("scales", 3, 3), {"quantize_e4m3: scales is [1, 3, 3], values is [1, 2, 3, 8]"});
}

TEST_F(QuantizeErrors, StridesAndLevel) {
  const Kokkos::View<float***, Kokkos::LayoutStride, Memory> strided("values", Kokkos::LayoutStride(2, 1, 3, 2, 8, 6));
  expect_refused(strided, quantized, scales, {"quantize_e4m3: the last dimension of values has stride 6, expected 1"});
  const Kokkos::View<float8_e4m3_t***, Kokkos::LayoutStride, Memory> repeated("quantized", Kokkos::LayoutStride(2, 0, 3, 8, 8, 1));
  expect_refused(values, repeated, scales, {"quantize_e4m3: quantized has stride 0"});
  expect_refused(values, quantized, scales, {"quantize_e4m3: ", "no Hopper level"}, Level::hopper);
}

TEST_F(QuantizeErrors, ArraysThatOverlap) {
  const Kokkos::View<float8_e4m3_t***, Kokkos::LayoutRight, Memory> on_values(reinterpret_cast<float8_e4m3_t*>(values.data()) + 191, 2, 3,
                                                                              8);
  expect_refused(values, on_values, scales, {"quantize_e4m3: quantized overlaps values"});
  const Kokkos::View<float**, Kokkos::LayoutRight, Memory> scales_on_values(values.data() + 47, 2, 3),
      scales_on_quantized(reinterpret_cast<float*>(quantized.data()), 2, 3);
  expect_refused(values, quantized, scales_on_values, {"quantize_e4m3: scales overlaps values"});
  expect_refused(values, quantized, scales_on_quantized, {"quantize_e4m3: scales overlaps quantized"});
}

TEST(QuantizeInstance, NothingIsAllocatedOrFenced) {
  const Space                  exec = another_instance();
  const View<float, 2>         values("values", 20, 100);
  const View<float8_e4m3_t, 2> quantized("quantized", 20, 100);
  const View<float, 1>         scales("scales", 20);
  expect_stays_on_instance(exec, [&] { Tributary::quantize_e4m3(exec, values, quantized, scales); });
}

}  // namespace
}  // namespace TributaryTest
