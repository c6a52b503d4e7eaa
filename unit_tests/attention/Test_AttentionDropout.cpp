#include "attention/AttentionFormula.hpp"

// Dropout as it is seen from outside: with an identity for values the output is the matrix of weights.

namespace TributaryTest {
namespace {

class AttentionDropout : public LevelTest {
 public:
  /// [B, Sq, Hq, Sk] weights after dropout, and the LSE.
  AttentionResult<float> weights(const AttentionShape& wanted, const Tributary::Dropout& dropout) {
    AttentionShape shape = wanted;
    shape.value_dim      = shape.keys;
    Random               random(30);
    AttentionCase<float> in(shape, random);
    in.value = Array<float, 4>(in.value.extents);
    for (std::int64_t b = 0; b < shape.batch; ++b)
      for (std::int64_t j = 0; j < shape.keys; ++j)
        for (std::int64_t h = 0; h < shape.key_heads; ++h) in.value(b, j, h, j) = 1;
    in.options.dropout = dropout;
    return AttentionCall<float>(level(), in).forward();
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionDropout, testing::ValuesIn(all_levels()), level_name);

TEST(AttentionPhilox, GivesThePublishedNumbers) {  // known answers of Random123
  const auto all = [](std::uint64_t seed, std::array<std::uint32_t, 4> counter) {
    return std::array{philox_word(seed, counter, 0), philox_word(seed, counter, 1), philox_word(seed, counter, 2),
                      philox_word(seed, counter, 3)};
  };
  EXPECT_EQ(all(0, {0, 0, 0, 0}), (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(all(0xffffffffffffffffu, {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}),
            (std::array<std::uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(all(0x299f31d0a4093822u, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (std::array<std::uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST_P(AttentionDropout, DropsTheDocumentedElements) {
  const AttentionShape     shape{.batch = 2, .queries = 9, .keys = 37, .heads = 4, .key_heads = 2, .head_dim = 5};
  const Tributary::Dropout dropout{.probability = 0.3, .seed = 0xfedcba9876543210u, .offset = 77};
  const auto               all = weights(shape, {}), some = weights(shape, dropout);
  const auto               threshold = static_cast<std::uint32_t>(0.3 * 0x1p32);
  for (std::uint32_t b = 0; b < 2; ++b)
    for (std::uint32_t i = 0; i < 9; ++i)
      for (std::uint32_t h = 0; h < 4; ++h)
        for (std::uint32_t j = 0; j < 37; ++j) {
          const bool  kept     = philox_word(dropout.seed, {j / 4, i, b * 4 + h, 77}, j % 4) >= threshold;
          const float expected = kept ? all.out(b, i, h, j) / 0.7f : 0;
          ASSERT_NEAR(some.out(b, i, h, j), expected, 2e-6f) << b << " " << h << " " << i << " " << j;
        }
  EXPECT_EQ(largest_difference(some.lse, all.lse), 0);  // not touched: the denominator is that of all weights
}

TEST_P(AttentionDropout, DependsOnSeedAndOffset) {
  const AttentionShape shape{.batch = 1, .queries = 8, .keys = 33, .heads = 1, .key_heads = 1, .head_dim = 4};
  const auto           first = weights(shape, {.probability = 0.5, .seed = 1});
  EXPECT_EQ(largest_difference(first.out, weights(shape, {.probability = 0.5, .seed = 1}).out), 0);
  EXPECT_GT(largest_difference(first.out, weights(shape, {.probability = 0.5, .seed = 2}).out), 0);
  EXPECT_GT(largest_difference(first.out, weights(shape, {.probability = 0.5, .seed = 0x100000001}).out), 0);
  EXPECT_GT(largest_difference(first.out, weights(shape, {.probability = 0.5, .seed = 1, .offset = 1}).out), 0);
}

TEST_P(AttentionDropout, EverythingDroppedIsZero) {
  const AttentionShape shape{.batch = 1, .queries = 8, .keys = 33, .heads = 2, .key_heads = 1, .head_dim = 4};
  const auto           all = weights(shape, {}), none = weights(shape, {.probability = 1});
  for (const float out : none.out.values) EXPECT_EQ(out, 0);
  EXPECT_EQ(largest_difference(none.lse, all.lse), 0);

  Random               random(31);
  AttentionCase<float> in(shape, random);
  in.options.dropout.probability = 1;
  const AttentionCall<float> call(level(), in);
  const auto                 gradients = call.backward(random_upstream(random, call.forward(), false));
  for (const auto* const gradient : {&gradients.query, &gradients.key, &gradients.value})
    for (const float value : gradient->values) EXPECT_EQ(value, 0);
}

TEST_P(AttentionDropout, KeepsTheShareAskedFor) {
  const AttentionShape shape{.batch = 2, .queries = 64, .keys = 200, .heads = 2, .key_heads = 2, .head_dim = 2};
  for (const double probability : {0.1, 0.5, 0.9}) {
    const auto result = weights(shape, {.probability = probability, .seed = 12});
    double     kept = 0, mean = 0;
    for (const float weight : result.out.values) kept += weight != 0, mean += static_cast<double>(weight);
    const auto elements = static_cast<double>(result.out.values.size());
    // five standard deviations of 51200 draws are at most 0.012
    EXPECT_NEAR(kept / elements, 1 - probability, 0.012);
    EXPECT_NEAR(mean * 200 / elements, 1, 0.2);  // unbiased
  }
}

TEST_P(AttentionDropout, NeverRenormalises) {
  // one key: a dropped weight leaves 0, a kept one 1/(1 - p), never 1
  const auto result =
      weights({.batch = 1, .queries = 64, .keys = 1, .heads = 1, .key_heads = 1, .head_dim = 2}, {.probability = 0.5, .seed = 4});
  int kept = 0;
  for (const float weight : result.out.values) {
    EXPECT_TRUE(weight == 0 || weight == 2) << weight;
    kept += weight != 0;
  }
  EXPECT_GT(kept, 10);
  EXPECT_LT(kept, 54);
}

}  // namespace
}  // namespace TributaryTest
