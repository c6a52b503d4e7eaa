#include "attention/AttentionFormula.hpp"

// What attention does to small inputs whose result is known, and the mistakes that attention kernels are known for.

namespace TributaryTest {
namespace {

class Attention : public LevelTest {
 public:
  Random random{50};

  /// One query head; logits are query * key, so that the softmax is under control.
  static AttentionCase<float> scalar_case(const std::vector<float>& query, const std::vector<float>& key, const std::vector<float>& value) {
    AttentionCase<float> in({1, static_cast<std::int64_t>(query.size()), static_cast<std::int64_t>(key.size()), 1, 1, 1, 1});
    in.query.values  = query;
    in.key.values    = key;
    in.value.values  = value;
    in.options.scale = 1;
    return in;
  }
  AttentionResult<float>         forward(const AttentionCase<float>& in) const { return AttentionCall<float>(level(), in).forward(); }
  AttentionGradientArrays<float> backward(const AttentionCase<float>& in) {
    const AttentionCall<float> call(level(), in);
    return call.backward(random_upstream(random, call.forward(), true));
  }
  static void expect_finite(const AttentionGradientArrays<float>& g) {
    for (const auto* values : {&g.query.values, &g.key.values, &g.value.values, &g.additive_mask.values, &g.alibi_slopes.values,
                               &g.relative_bias.values, &g.sink.values})
      for (const float value : *values) ASSERT_TRUE(std::isfinite(value));
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, Attention, testing::ValuesIn(all_levels()), level_name);

TEST_P(Attention, WeighsValuesByTheSoftmax) {
  const float ln2    = std::log(2.0f);
  const auto  result = forward(scalar_case({1, 0}, {0, ln2, 2 * ln2}, {7, 14, 21}));
  EXPECT_NEAR(result.out(0, 0, 0, 0), (7 + 2 * 14 + 4 * 21) / 7.0f, 1e-5f);
  EXPECT_NEAR(result.lse(0, 0, 0), std::log(7.0f), 1e-6f);
  EXPECT_NEAR(result.out(0, 1, 0, 0), 14, 1e-5f);
  EXPECT_NEAR(result.lse(0, 0, 1), std::log(3.0f), 1e-6f);
}

TEST_P(Attention, KeepMeansTakesPartAndAdditiveMasksAdd) {
  auto in         = scalar_case({0}, {0, 0, 0}, {1, 10, 100});
  in.keep         = Array<std::uint8_t, 4>({1, 1, 1, 3});
  in.keep->values = {1, 0, 255};  // any nonzero value
  EXPECT_NEAR(forward(in).out.values[0], 50.5f, 1e-5f);
  in.key_keep         = Array<std::uint8_t, 2>({1, 3});
  in.key_keep->values = {1, 1, 0};
  EXPECT_NEAR(forward(in).out.values[0], 1, 1e-6f);
  in.keep.reset();
  in.key_keep.reset();
  in.additive_mask         = Array<float, 4>({1, 1, 1, 3});
  in.additive_mask->values = {0, std::log(3.0f), -infinite};
  EXPECT_NEAR(forward(in).out.values[0], (1 + 3 * 10) / 4.0f, 1e-5f);
  EXPECT_NEAR(forward(in).lse.values[0], std::log(4.0f), 1e-6f);
}

TEST_P(Attention, CausalIsAlignedAtTheEnd) {
  // values 1, 10, 100, ...: the sum tells who was seen
  const auto in = [](std::int64_t queries, std::int64_t keys) {
    auto c =
        scalar_case(std::vector<float>(static_cast<std::size_t>(queries), 0), std::vector<float>(static_cast<std::size_t>(keys), 0), {});
    c.options.causal = true;
    for (std::int64_t j = 0; j < keys; ++j) c.value.values.push_back(std::pow(10.0f, static_cast<float>(j)));
    return c;
  };
  // decoding: the one query is the last position and sees the whole cache
  EXPECT_NEAR(forward(in(1, 4)).out.values[0], 1111 / 4.0f, 1e-3f);
  const auto two = forward(in(2, 4));
  EXPECT_NEAR(two.out.values[0], 111 / 3.0f, 1e-4f);
  EXPECT_NEAR(two.out.values[1], 1111 / 4.0f, 1e-3f);
  // more queries than keys: the first ones stand before every key
  const auto five = forward(in(5, 2));
  EXPECT_EQ(std::vector<float>(five.out.values.begin(), five.out.values.begin() + 3), (std::vector<float>{0, 0, 0}));
  EXPECT_EQ(five.lse.values[2], -infinite);
  EXPECT_NEAR(five.out.values[3], 1, 1e-6f);
  EXPECT_NEAR(five.out.values[4], 5.5f, 1e-5f);
}

TEST_P(Attention, WindowBoundsAreInclusive) {
  auto in                           = scalar_case({0, 0, 0, 0, 0}, {0, 0, 0, 0, 0}, {1, 10, 100, 1000, 10000});
  in.options.window_left            = 1;
  in.options.window_right           = 2;
  const auto               result   = forward(in);
  const std::vector<float> expected = {111 / 3.0f, 1111 / 4.0f, 11110 / 4.0f, 11100 / 3.0f, 11000 / 2.0f};
  for (std::size_t i = 0; i < 5; ++i) EXPECT_NEAR(result.out.values[i], expected[i], 1e-6f * expected[i]) << i;
  in.options.window_left = in.options.window_right = 0;
  EXPECT_EQ(forward(in).out.values, in.value.values);
  in.options = {.scale = 1.0f, .causal = true, .window_left = 0, .window_right = 3};  // causal goes before the right side
  EXPECT_EQ(forward(in).out.values, in.value.values);
}

TEST_P(Attention, RowsWithoutALegalKeyAreZeroWithZeroGradients) {
  AttentionCase<float> in({2, 70, 67, 2, 1, 8, 8}, random);
  in.keep         = Array<std::uint8_t, 4>({2, 1, 70, 67}, 1);
  in.sink         = Array<float, 1>({2}, 0.5f);
  const auto none = [](std::int64_t b, std::int64_t i) { return (b == 0 && i % 3 == 0) || (b == 1 && i < 40); };
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t i = 0; i < 70; ++i)
      for (std::int64_t j = 0; none(b, i) && j < 67; ++j) (*in.keep)(b, 0, i, j) = 0;
  const auto result    = forward(in);
  const auto gradients = backward(in);
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t i = 0; i < 70; ++i)
      for (std::int64_t h = 0; h < 2; ++h) {
        EXPECT_EQ(result.lse(b, h, i) == -infinite, none(b, i));
        for (std::int64_t d = 0; d < 8 && none(b, i); ++d) {
          EXPECT_EQ(result.out(b, i, h, d), 0);
          EXPECT_EQ(gradients.query(b, i, h, d), 0);
        }
      }
  expect_finite(gradients);
  expect_formula<float>(level(), in, random);
}

TEST_P(Attention, EveryRowHidden) {
  for (const int how : {0, 1, 2}) {
    AttentionCase<float> in({1, 33, 65, 2, 1, 8, 8}, random);
    if (how == 0) in.key_keep = Array<std::uint8_t, 2>({1, 65});
    if (how == 1) in.additive_mask = Array<float, 4>({1, 1, 1, 65}, -infinite);
    if (how == 2) in.options.causal = true, in.options.window_left = 0, in.keep = Array<std::uint8_t, 4>({1, 2, 33, 65});
    const auto result = forward(in);
    for (const float out : result.out.values) EXPECT_EQ(out, 0);
    for (const float lse : result.lse.values) EXPECT_EQ(lse, -infinite);
    const auto gradients = backward(in);
    for (const auto* values : {&gradients.query.values, &gradients.key.values, &gradients.value.values, &gradients.additive_mask.values})
      for (const float value : *values) EXPECT_EQ(value, 0);
  }
}

TEST_P(Attention, NoKeysAtAll) {
  AttentionCase<float> in({1, 3, 0, 2, 2, 4, 4}, random);
  in.sink           = Array<float, 1>({2}, 1.0f);
  const auto result = forward(in);
  for (const float out : result.out.values) EXPECT_EQ(out, 0);
  for (const float lse : result.lse.values) EXPECT_EQ(lse, -infinite);
  const auto gradients = backward(in);
  for (const float value : gradients.query.values) EXPECT_EQ(value, 0);
  for (const float value : gradients.sink.values) EXPECT_EQ(value, 0);
}

TEST_P(Attention, MasksThatHideWholeTiles) {
  for (const auto& [begin, end] : {std::pair{0, 130}, {200, 390}, {64, 128}, {389, 390}, {0, 1}}) {
    AttentionCase<float> in({1, 5, 390, 1, 1, 8, 8}, random);
    in.key_keep = Array<std::uint8_t, 2>({1, 390});
    for (std::int64_t j = begin; j < end; ++j) (*in.key_keep)(0, j) = 1;
    expect_formula<float>(level(), in, random);
    in.additive_mask = Array<float, 4>({1, 1, 1, 390}, -infinite);
    for (std::int64_t j = begin; j < end; ++j) (*in.additive_mask)(0, 0, 0, j) = 0.5f;
    in.key_keep.reset();
    expect_formula<float>(level(), in, random);
  }
}

TEST_P(Attention, ColumnsPastTheLastKeyAreNotSeen) {
  // the keys are the first 37 of 64 whose rest would win every softmax
  AttentionCase<float> wide({2, 3, 64, 2, 2, 8, 8}, random), in({2, 3, 37, 2, 2, 8, 8});
  in.query = wide.query;
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t j = 0; j < 64; ++j)
      for (std::int64_t h = 0; h < 2; ++h)
        for (std::int64_t d = 0; d < 8; ++d) {
          if (j >= 37) wide.key(b, j, h, d) = wide.value(b, j, h, d) = 1e30f;
          if (j < 37) in.key(b, j, h, d) = wide.key(b, j, h, d), in.value(b, j, h, d) = wide.value(b, j, h, d);
        }
  const AttentionCall<float> call(level(), wide);
  const Kokkos::pair         keys(0, 37);
  const auto                 out = in_space(call.empty_result().out);
  Tributary::attention_forward(Space{}, call.query, Kokkos::subview(call.key, Kokkos::ALL, keys, Kokkos::ALL, Kokkos::ALL),
                               Kokkos::subview(call.value, Kokkos::ALL, keys, Kokkos::ALL, Kokkos::ALL), out, std::nullopt, call.options);
  EXPECT_LE(largest_difference(from_space<4>(out), exact_formula(in).forward().out), 2e-6);
}

TEST_P(Attention, GradientsMayLieBetweenEachOthersRows) {
  const auto all = Kokkos::ALL;
  for (const std::int64_t dim : {5, 8, 64}) {
    AttentionCase<float> in({2, 70, 70, 3, 3, dim, dim}, random);
    in.options.causal = true;
    if (dim == 8) in.options.rotary = {.dims = 8};  // gradients of queries and keys are turned back
    const AttentionCall<float> call(level(), in);
    const auto                 result   = call.forward();
    const auto                 upstream = random_upstream(random, result, false);
    const auto                 apart    = call.backward(upstream);
    // as one product of the hidden states makes query, key and value: [B, S, 3, H, D]
    Array<float, 4> together({2, 70, 9, dim}, 7.0f);
    const auto      gradients = in_space(together);
    const auto      part      = [&](int which) {
      return Kokkos::subview(View<float, 5>(gradients.data(), 2, 70, 3, 3, dim), all, all, which, all, all);
    };
    Tributary::attention_backward(Space{}, call.query, call.key, call.value, in_space(result.out), in_space(result.lse),
                                  in_space(upstream.grad_out), part(0), part(1), part(2), call.options);
    embed(together, apart.query, {0, 0, 0, 0});
    embed(together, apart.key, {0, 0, 3, 0});
    embed(together, apart.value, {0, 0, 6, 0});
    EXPECT_EQ(largest_difference(from_space<4>(gradients), together), 0);
  }
}

TEST_P(Attention, LargeLogitsStayFinite) {
  for (const float sign : {1.0f, -1.0f}) {
    const auto in     = scalar_case({sign * 100, sign * 100, 0}, {100, 99.99f, -100, 100}, {1, 2, 3, 4});
    const auto result = forward(in);
    const auto exact = exact_formula(in).forward(), all = exact;
    EXPECT_LE(largest_difference(result.out, exact.out), 4e-3);  // a logit of 1e4 has steps of 1e-3 in float
    EXPECT_LE(largest_difference(result.lse, exact.lse), 2e-3);
    expect_finite(backward(in));
  }
  auto masked          = scalar_case({1, 1}, {1, 2, 3}, {1, 2, 3});
  masked.additive_mask = Array<float, 4>({1, 1, 2, 3});
  // a whole row at the least number is a shift, not a hidden row
  masked.additive_mask->values = {-1e4f, 1e4f, -1e30f, -3.0e38f, -3.0e38f, -infinite};
  const auto result            = forward(masked);
  EXPECT_EQ(result.out.values[0], 2);
  EXPECT_NEAR(result.out.values[1], 1.5f, 0.5f);
  EXPECT_TRUE(std::isfinite(result.lse.values[1]));
  expect_finite(backward(masked));
}

TEST_P(Attention, InfiniteAdditiveMasksGiveNoNan) {
  auto in                  = scalar_case({1, 1, 1}, {1, 2, 3}, {10, 20, 60});
  in.additive_mask         = Array<float, 4>({1, 1, 3, 3});
  in.additive_mask->values = {infinite, 0, -infinite, infinite, -infinite, infinite, -infinite, -infinite, -infinite};
  const auto result        = forward(in);
  EXPECT_EQ(result.out.values, (std::vector<float>{10, 35, 0}));
  EXPECT_FALSE(std::isnan(result.lse.values[0]) || std::isnan(result.lse.values[1]));
  EXPECT_EQ(result.lse.values[2], -infinite);
  const auto gradients = backward(in);
  for (const auto* values : {&gradients.query.values, &gradients.key.values, &gradients.value.values, &gradients.additive_mask.values})
    EXPECT_TRUE(std::none_of(values->begin(), values->end(), [](float value) { return std::isnan(value); }));
}

TEST_P(Attention, TheSinkJoinsTheDenominatorOnly) {
  auto in           = scalar_case({0.5f}, {0, 0, 0}, {3, 6, 9});
  in.sink           = row<float>({0});
  const auto result = forward(in);
  EXPECT_NEAR(result.out.values[0], 18 / 4.0f, 1e-5f);
  EXPECT_NEAR(result.lse.values[0], std::log(3.0f), 1e-6f);
  in.sink = row<float>({-infinite});
  EXPECT_NEAR(forward(in).out.values[0], 6, 1e-5f);
  in.sink = row<float>({1e4f});
  EXPECT_EQ(forward(in).out.values[0], 0);
  for (const float sink : {-infinite, -1e30f, -100.0f, 0.0f, 5.0f, 100.0f, 1e4f})
    for (const bool with_lse : {false, true}) {  // whose gradient knows of no sink
      SCOPED_TRACE("sink " + std::to_string(sink) + (with_lse ? ", with a gradient of LSE" : ""));
      in.sink = row<float>({sink});
      const AttentionCall<float> call(level(), in);
      const auto                 upstream = random_upstream(random, call.forward(), with_lse);
      expect_close(call.backward(upstream), exact_formula(in).backward(upstream), naive_formula(in).backward(upstream));
    }
}

TEST_P(Attention, SoftcapBoundsTheScore) {
  auto in            = scalar_case({1000}, {1000, -1000}, {1, 0});
  in.options.softcap = 2;
  EXPECT_NEAR(forward(in).lse.values[0], std::log(std::exp(2.0f) + std::exp(-2.0f)), 1e-6f);
  // biases come after the cap
  in.additive_mask = Array<float, 4>({1, 1, 1, 2}, 50.0f);
  EXPECT_NEAR(forward(in).lse.values[0], 50 + std::log(std::exp(2.0f) + std::exp(-2.0f)), 1e-5f);
}

TEST_P(Attention, RelativeBiasUsesT5sBuckets) {
  // What the T5 implementation gives: distances 0 ... 7, then 8-11, 12-15, 16-22, 23-31, 32-45, 46-63, 64-90 and beyond.
  const std::vector<std::int64_t> first = {0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91};
  for (const bool after : {false, true}) {
    AttentionCase<float> in({1, 1, 300, 1, 1, 1, 1});  // one query, at position 299: every key is behind it
    in.relative_bias = Array<float, 2>({32, 1});
    for (std::size_t b = 0; b < 32; ++b) in.relative_bias->values[b] = static_cast<float>(b);
    if (after) {
      in               = AttentionCase<float>({1, 300, 1, 1, 1, 1, 1});  // one key, after every query but the last
      in.relative_bias = Array<float, 2>({32, 1});
      for (std::size_t b = 0; b < 32; ++b) in.relative_bias->values[b] = static_cast<float>(b);
    }
    for (std::int64_t distance = 0; distance < 300; ++distance) {
      const std::int64_t bucket = std::upper_bound(first.begin(), first.end(), distance) - first.begin() - 1;
      if (after) {
        // The key at 0, the query at i - 299.
        const auto lse = forward(in).lse;
        for (std::int64_t i = 0; i < 300; ++i) {
          const std::int64_t at = std::upper_bound(first.begin(), first.end(), 299 - i) - first.begin() - 1;
          ASSERT_EQ(lse(0, 0, i), static_cast<float>(at + (i < 299 ? 16 : 0))) << "distance " << 299 - i;
        }
        break;
      }
      in.keep                             = Array<std::uint8_t, 4>({1, 1, 1, 300});
      (*in.keep)(0, 0, 0, 299 - distance) = 1;
      ASSERT_EQ(forward(in).lse.values[0], static_cast<float>(bucket)) << "distance " << distance;
    }
  }
}

TEST_P(Attention, RelativeBiasOfAsManyBucketsAsThereMayBe) {
  constexpr std::int64_t queries = 3000;
  for (const bool bidirectional : {false, true})
    for (const bool after : {false, true}) {
      SCOPED_TRACE(std::string(bidirectional ? "bidirectional" : "unidirectional") + (after ? ", after" : ""));
      const int            buckets = bidirectional ? 512 : 1024, single = buckets / 2, most = 2000;
      AttentionCase<float> in({1, queries, 1, 1, 1, 1, 1});  // one key, behind every query or after every one but the last
      in.relative_bias                       = Array<float, 2>({1024, 1});
      in.options.relative_bias.max_distance  = most;
      in.options.relative_bias.bidirectional = bidirectional;
      if (!after) in.options.query_offset = 0;
      for (std::size_t b = 0; b < 1024; ++b) in.relative_bias->values[b] = static_cast<float>(b);
      const auto lse = forward(in).lse;
      for (std::int64_t i = 0; i < queries; ++i) {
        const std::int64_t relative = after ? queries - 1 - i : -i,
                           distance = bidirectional ? std::abs(relative) : std::max<std::int64_t>(-relative, 0);
        const double share =
            distance < single ? 0 : std::log(static_cast<double>(distance) / single) / std::log(static_cast<double>(most) / single);
        const auto bucket = [&](double rounding) {
          return distance < single ? distance
                                   : std::min<std::int64_t>(buckets - 1, single + std::floor(share * (buckets - single) + rounding));
        };
        const int direction = bidirectional && relative > 0 ? buckets : 0;
        ASSERT_GE(lse(0, 0, i), static_cast<float>(bucket(-1e-6) + direction)) << relative;
        ASSERT_LE(lse(0, 0, i), static_cast<float>(bucket(1e-6) + direction)) << relative;
      }
    }
}

TEST_P(Attention, RotaryScoresDependOnDistanceAlone) {
  AttentionCase<float> in({1, 20, 20, 1, 1, 16, 8}, random);
  in.options.rotary = {.dims = 12};
  const auto at     = [&](std::int32_t first) {
    in.query_positions = Array<std::int32_t, 2>({1, 20});
    in.key_positions   = Array<std::int32_t, 2>({1, 20});
    for (std::int32_t i = 0; i < 20; ++i)
      in.query_positions->values[static_cast<std::size_t>(i)] = in.key_positions->values[static_cast<std::size_t>(i)] = first + i;
    return forward(in);
  };
  const auto here = at(0), there = at(5000);
  EXPECT_LE(largest_difference(here.out, there.out), 1e-4);
  in.query_positions.reset();
  in.key_positions.reset();
  EXPECT_LE(largest_difference(forward(in).out, here.out), 1e-6);  // the positions that are meant when none are given
}

template <class Element>
void rotated_values_are_rounded(Level level) {
  for (const bool query_turns : {true, false}) {
    AttentionCase<Element> in({1, 1, 1, 1, 1, 2, 1});
    in.query.values    = {Element(query_turns ? 1.0f : 256.0f), Element(0.0f)};
    in.key.values      = {Element(query_turns ? 256.0f : 1.0f), Element(0.0f)};
    in.value.values    = {Element(1.0f)};
    in.options.scale   = 1;
    in.options.rotary  = {.dims = 2};
    in.query_positions = Array<std::int32_t, 2>({1, 1}, query_turns);
    in.key_positions   = Array<std::int32_t, 2>({1, 1}, !query_turns);
    // one pair: its score is the LSE
    const float rounded = static_cast<float>(Element(static_cast<float>(std::cos(1.0))));
    EXPECT_EQ((AttentionCall<Element>(level, in).forward().lse.values[0]), 256 * rounded);
  }
}
TEST_P(Attention, RotatedValuesAreRoundedToBfloat16) { rotated_values_are_rounded<bfloat16_t>(level()); }
TEST_P(Attention, RotatedValuesAreRoundedToHalf) { rotated_values_are_rounded<half_t>(level()); }

TEST_P(Attention, GroupsOfHeadsShareAKeyHead) {
  AttentionCase<float> grouped({2, 9, 40, 6, 2, 8, 8}, random), repeated({2, 9, 40, 6, 6, 8, 8});
  repeated.query = grouped.query;
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t j = 0; j < 40; ++j)
      for (std::int64_t h = 0; h < 6; ++h)
        for (std::int64_t d = 0; d < 8; ++d) {
          repeated.key(b, j, h, d)   = grouped.key(b, j, h / 3, d);
          repeated.value(b, j, h, d) = grouped.value(b, j, h / 3, d);
        }
  EXPECT_LE(largest_difference(forward(grouped).out, forward(repeated).out), 1e-6);
}

}  // namespace
}  // namespace TributaryTest
