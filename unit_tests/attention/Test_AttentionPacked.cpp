#include "attention/AttentionFormula.hpp"

// Sequences one behind another.

namespace TributaryTest {
namespace {

class AttentionPacked : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionPacked, testing::ValuesIn(all_levels()), level_name);

constexpr std::int64_t heads = 4, key_heads = 2;

/// Five sequences, among them one without queries and one without keys; with every option that counts within a sequence.
template <class Element>
AttentionCase<Element> packed_case(Random& random) {
  AttentionCase<Element> in({1, 98, 160, heads, key_heads, 16, 9}, random);
  in.cu_seqlens_q                       = {0, 33, 33, 40, 41, 98};
  in.cu_seqlens_k                       = {0, 33, 50, 50, 115, 160};
  in.options.causal                     = true;
  in.options.window_left                = 30;
  in.options.rotary                     = {.dims = 8};
  in.options.dropout                    = {.probability = 0.2, .seed = 8};
  in.options.relative_bias.max_distance = 30;
  in.key_keep                           = Array<std::uint8_t, 2>({1, 160});
  in.keep                               = Array<std::uint8_t, 4>({1, 1, 98, 65});
  in.additive_mask                      = Array<float, 4>({1, heads, 98, 60});  // narrower than the longest sequence: 0 beyond
  in.alibi_slopes                       = Array<float, 2>({5, heads});
  in.relative_bias                      = Array<float, 2>({16, heads});
  in.sink                               = Array<float, 1>({heads});
  for (auto& keep : in.key_keep->values) keep = random.integer<std::uint8_t>(0, 4);
  for (auto& keep : in.keep->values) keep = random.integer<std::uint8_t>(0, 4);
  random.fill_with_normals(*in.additive_mask);
  random.fill_with_normals(*in.relative_bias);
  random.fill_with_normals(*in.sink);
  for (auto& slope : in.alibi_slopes->values) slope = 0.1f * random.normal();
  return in;
}

TEST_P(AttentionPacked, FloatOptions) {
  Random random(60);
  expect_formula<float>(level(), packed_case<float>(random), random);
}
TEST_P(AttentionPacked, Bfloat16Options) {
  Random random(61);
  expect_formula<bfloat16_t>(level(), packed_case<bfloat16_t>(random), random);
}

TEST_P(AttentionPacked, NarrowKeepHidesWhatLiesBeyond) {
  Random random(62);
  auto   in = packed_case<float>(random);
  for (const std::int64_t columns : {0, 1, 20, 300}) {
    in.keep          = Array<std::uint8_t, 4>({1, heads, 1, columns}, 1);
    in.additive_mask = Array<float, 4>({1, 1, 1, columns}, 0.5f);
    expect_formula<float>(level(), in, random);
  }
}

TEST_P(AttentionPacked, AKeepWithoutColumnsHidesEverything) {
  Random               random(67);
  AttentionCase<float> in({1, 5, 9, heads, key_heads, 16, 9}, random);
  in.cu_seqlens_q = {0, 5};
  in.cu_seqlens_k = {0, 9};
  AttentionCall<float> call(level(), in);
  call.options.keep = Kokkos::View<const std::uint8_t****, Kokkos::LayoutRight, Memory, Kokkos::MemoryUnmanaged>(nullptr, 1, 1, 1, 0);
  const auto result = call.forward();
  for (const float lse : result.lse.values) EXPECT_EQ(lse, -infinite);
  for (const float out : result.out.values) EXPECT_EQ(out, 0);
}

TEST_P(AttentionPacked, EqualsSeparateCalls) {
  Random random(63);
  auto   in          = packed_case<float>(random);
  in.options.dropout = {};  // its elements are numbered by the sequence, which a call of its own does not have
  const auto whole   = AttentionCall<float>(level(), in).forward();
  for (std::size_t s = 0; s + 1 < in.cu_seqlens_q.size(); ++s) {
    const std::int64_t q0 = in.cu_seqlens_q[s], queries = in.cu_seqlens_q[s + 1] - q0, k0 = in.cu_seqlens_k[s],
                       keys = in.cu_seqlens_k[s + 1] - k0;
    AttentionCase<float> one({1, queries, keys, heads, key_heads, 16, 9});
    one.options       = in.options;
    one.relative_bias = in.relative_bias;
    one.sink          = in.sink;
    one.key_keep      = Array<std::uint8_t, 2>({1, keys});
    one.keep          = Array<std::uint8_t, 4>({1, 1, queries, keys});
    one.additive_mask = Array<float, 4>({1, heads, queries, keys});
    one.alibi_slopes  = Array<float, 2>({1, heads});
    for (std::int64_t h = 0; h < heads; ++h) (*one.alibi_slopes)(0, h) = (*in.alibi_slopes)(s, h);
    for (std::int64_t j = 0; j < keys; ++j) {
      (*one.key_keep)(0, j) = (*in.key_keep)(0, k0 + j);
      for (std::int64_t h = 0; h < key_heads; ++h) {
        for (std::int64_t d = 0; d < 16; ++d) one.key(0, j, h, d) = in.key(0, k0 + j, h, d);
        for (std::int64_t d = 0; d < 9; ++d) one.value(0, j, h, d) = in.value(0, k0 + j, h, d);
      }
    }
    for (std::int64_t i = 0; i < queries; ++i) {
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t d = 0; d < 16; ++d) one.query(0, i, h, d) = in.query(0, q0 + i, h, d);
      for (std::int64_t j = 0; j < keys; ++j) {
        (*one.keep)(0, 0, i, j) = (*in.keep)(0, 0, q0 + i, j);
        for (std::int64_t h = 0; h < heads && j < 60; ++h) (*one.additive_mask)(0, h, i, j) = (*in.additive_mask)(0, h, q0 + i, j);
      }
    }
    const auto alone = AttentionCall<float>(level(), one).forward();
    for (std::int64_t i = 0; i < queries; ++i)
      for (std::int64_t h = 0; h < heads; ++h) {
        const float given = whole.lse(0, h, q0 + i), expected = alone.lse(0, h, i);
        ASSERT_TRUE(given == expected || std::abs(given - expected) <= 2e-6f)
            << given << " and " << expected << " at " << s << " " << i << " " << h;
        for (std::int64_t d = 0; d < 9; ++d)
          ASSERT_NEAR(whole.out(0, q0 + i, h, d), alone.out(0, i, h, d), 2e-6f) << s << " " << i << " " << h;
      }
  }
}

TEST_P(AttentionPacked, EqualsABatchOfEqualLengths) {
  Random               random(64);
  AttentionCase<float> batch({3, 20, 25, heads, key_heads, 16, 9}, random), packed({1, 60, 75, heads, key_heads, 16, 9});
  batch.options.dropout = packed.options.dropout = {.probability = 0.5, .seed = 3};
  packed.query.values                            = batch.query.values;
  packed.key.values                              = batch.key.values;
  packed.value.values                            = batch.value.values;
  packed.cu_seqlens_q                            = {0, 20, 40, 60};
  packed.cu_seqlens_k                            = {0, 25, 50, 75};
  const auto a = AttentionCall<float>(level(), batch).forward(), b = AttentionCall<float>(level(), packed).forward();
  for (std::size_t n = 0; n < a.out.values.size(); ++n) ASSERT_NEAR(a.out.values[n], b.out.values[n], 2e-6f);
}

TEST_P(AttentionPacked, RowsOutsideEverySequenceHaveNoKey) {
  Random               random(65);
  AttentionCase<float> in({1, 30, 30, heads, key_heads, 16, 9}, random);
  in.cu_seqlens_q  = {4, 11, 25};
  in.cu_seqlens_k  = {2, 12, 24};
  in.relative_bias = Array<float, 2>({8, heads}, 0.1f);
  expect_formula<float>(level(), in, random);
  const auto result = AttentionCall<float>(level(), in).forward();
  for (const std::int64_t i : {0, 3, 25, 29}) {
    EXPECT_EQ(result.lse(0, 1, i), -infinite);
    EXPECT_EQ(result.out(0, i, 1, 4), 0);
  }
}

TEST_P(AttentionPacked, OffsetsThatAreNotAscendingOrTooLargeAreClipped) {
  Random               random(66);
  AttentionCase<float> in({1, 30, 30, heads, key_heads, 16, 9}, random);
  in.additive_mask = Array<float, 4>({1, 1, 30, 30}, 0.1f);
  for (const auto& [q, k] : {std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>>{{-5, 12, 1000}, {-7, 40, 3}},
                             {{0, 20, 10, 30}, {0, 25, 9, 30}},
                             {{2147483647, -2147483647}, {0, 30}},
                             {{0, 30}, {2147483647, -2147483647}},
                             {{0}, {0}}}) {
    in.cu_seqlens_q = q;
    in.cu_seqlens_k = k;
    const AttentionCall<float> call(level(), in);
    const auto                 result    = call.forward();
    const auto                 gradients = call.backward(random_upstream(random, result, true));
    for (const float out : result.out.values) EXPECT_TRUE(std::isfinite(out));
    for (const auto* values : {&gradients.query.values, &gradients.key.values, &gradients.value.values, &gradients.additive_mask.values})
      for (const float value : *values) EXPECT_TRUE(std::isfinite(value));
  }
}

}  // namespace
}  // namespace TributaryTest
