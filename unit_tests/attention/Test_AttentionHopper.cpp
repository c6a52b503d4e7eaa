#include <cmath>

#include "attention/AttentionHopper.hpp"
#include "attention/RandomOptions.hpp"

// The Hopper level of attention where its work is cut: forward tiles of 128 or 192 queries and 64 to 160 keys, backward ones of 64 or 128
// queries and 128 keys, or 256 that five or ten teams share; forward beyond 256, tiles of 64 rows, heads times queries, and 64 keys;
// sequences that end within them, work items in sections.  In builds without that level there is nothing here.

namespace TributaryTest {
namespace {

#if defined(TRIBUTARY_ENABLE_SM90)

const std::vector<std::int64_t> edges = {1, 63, 64, 65, 127, 128, 129, 159, 160, 161, 191, 192, 193, 255, 256, 257, 400, 511, 512, 513};

template <class Element>
AttentionCase<Element> case_of_edges(Random& random, std::int64_t head_dim, std::int64_t value_dim) {
  AttentionCase<Element> in(
      {random.integer(1, 2), random.any_of(edges), random.any_of(edges), 2, random.integer(1, 2), head_dim, value_dim}, random);
  in.options.causal = random.coin();
  if (random.coin()) in.options.window_left = random.integer(0, 200);
  if (random.coin()) in.options.window_right = random.integer(0, 200);
  if (random.coin()) in.sink = Array<float, 1>({2}, 0.5f);
  return in;
}

template <class Element>
void head_dimensions_and_lengths(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const auto& [head_dim, value_dim] :
       {std::pair{8, 8}, {40, 64}, {64, 64}, {64, 24}, {96, 96}, {128, 128}, {128, 72}, {192, 128}, {192, 192}, {256, 256}, {200, 256}})
    for (int i = 0; i < 6 && !testing::Test::HasFailure(); ++i) {
      const auto in = case_of_edges<Element>(random, head_dim, value_dim);
      AttentionHopper::expect_forward<Element>(in);
      AttentionHopper::expect_forward<float>(in);
    }
}
TEST_F(AttentionHopper, HeadDimensionsAndLengthsOfBfloat16) { head_dimensions_and_lengths<bfloat16_t>(100); }
TEST_F(AttentionHopper, HeadDimensionsAndLengthsOfHalf) { head_dimensions_and_lengths<half_t>(101); }

/// Head dimensions beyond 256, whose tiles pack the heads of a group: groups of all sizes, windows of single keys and of many tiles.
template <class Element>
void wide_heads_and_lengths(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const auto& [head_dim, value_dim] : {std::pair{512, 512}, {264, 328}, {512, 72}, {64, 320}})
    for (const std::int64_t group : {1, 3, 8, 33, 64, 70, 128}) {
      if (testing::Test::HasFailure()) return;
      const std::int64_t     key_heads = group <= 8 ? random.integer(1, 2) : 1;
      const std::int64_t     queries   = group > 8 ? random.integer(1, 20) : choice<std::int64_t>(random, {1, 7, 8, 9, 63, 64, 65, 129});
      AttentionCase<Element> in({random.integer(1, 2), queries, random.any_of(edges), group * key_heads, key_heads, head_dim, value_dim},
                                random);
      in.options.causal = random.coin();
      if (random.coin()) in.options.window_left = random.integer(0, 200);
      if (random.coin()) in.options.window_right = random.integer(0, 200);
      if (random.coin()) in.sink = Array<float, 1>({group * key_heads}, 0.5f);
      AttentionHopper::expect_forward<Element>(in);
      AttentionHopper::expect_forward<float>(in);
    }
}
TEST_F(AttentionHopper, WideHeadsAndLengthsOfBfloat16) { wide_heads_and_lengths<bfloat16_t>(120); }
TEST_F(AttentionHopper, WideHeadsAndLengthsOfHalf) { wide_heads_and_lengths<half_t>(121); }

TEST_F(AttentionHopper, ValuesThatAreTheKeysGiveWhatTheirCopyGives) {
  SCOPED_TRACE(seed_text());
  Random random(122);
  for (const bool hidden : {false, true})
    for (const std::int64_t window : {-1, 127, 200}) {
      SCOPED_TRACE("window " + std::to_string(window) + (hidden ? ", hidden keys" : ""));
      AttentionCase<bfloat16_t> in({2, 300, 500, 64, 1, 512, 512}, random);
      in.value.values        = in.key.values;
      in.options.causal      = true;
      in.options.window_left = window;
      if (hidden) {
        in.key_keep = Array<std::uint8_t, 2>({2, 500});
        for (auto& keep : in.key_keep->values) keep = random.integer<std::uint8_t>(0, 2);
      }
      AttentionCall<bfloat16_t> call(level, in);
      const auto                copied = call.forward();
      call.value                       = call.key;
      const auto shared                = call.forward();
      EXPECT_EQ(largest_difference(shared.out, copied.out), 0);
      EXPECT_EQ(largest_difference(shared.lse, copied.lse), 0);
      const auto expected = AttentionCall<bfloat16_t>(Level::portable, in).forward();
      EXPECT_LE(largest_difference(copied.out, expected.out), 0x1p-8 * 6);
      EXPECT_LE(largest_difference(copied.lse, expected.lse), 1e-5);
    }
}

template <class Element>
void random_options(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (int i = 0; i < 80 && !testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    auto in = with_random_options<Element>(random, aligned_shape(random, {8, 32, 64, 80, 96, 128, 192, 256, 264, 512}));
    if (random.coin()) {
      in.options.query_offset = random.integer(-50, 200);
      in.options.key_offset   = random.integer(0, 100);
    }
    AttentionHopper::expect_forward<Element>(in);
  }
}
TEST_F(AttentionHopper, RandomOptionsOfBfloat16) { random_options<bfloat16_t>(110); }
TEST_F(AttentionHopper, RandomOptionsOfHalf) { random_options<half_t>(111); }

TEST_F(AttentionHopper, ManyTilesAgreeWithThePortableLevel) {
  // Weights are rounded to bfloat16 before they meet the values, so an output is off by 2^-9 of the largest value, and is rounded itself.
  SCOPED_TRACE(seed_text());
  Random random(102);
  for (const std::int64_t dim : {64, 128, 256, 512})
    for (const bool causal : {false, true}) {
      AttentionCase<bfloat16_t> in({2, 1500, 1700, 6, 3, dim, dim}, random);
      in.options.causal   = causal;
      const auto given    = AttentionCall<bfloat16_t, float>(level, in).forward();
      const auto expected = AttentionCall<bfloat16_t, float>(Level::portable, in).forward();
      EXPECT_LE(largest_difference(given.out, expected.out), 0x1p-9 * 6) << "dim " << dim << (causal ? ", causal" : "");
      EXPECT_LE(largest_difference(given.lse, expected.lse), 1e-5) << "dim " << dim << (causal ? ", causal" : "");
    }
}

template <class Element>
void gradients_of_lengths(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const auto& [head_dim, value_dim] : {std::pair{8, 8},
                                            {40, 64},
                                            {64, 64},
                                            {96, 96},
                                            {128, 128},
                                            {128, 72},
                                            {136, 136},
                                            {192, 128},
                                            {192, 192},
                                            {72, 200},
                                            {256, 256},
                                            {256, 64},
                                            {512, 512},
                                            {264, 72},
                                            {64, 320}})
    for (int i = 0; i < 8 && !testing::Test::HasFailure(); ++i) {
      const auto in = case_of_edges<Element>(random, head_dim, value_dim);
      AttentionHopper::expect_backward(in, random);
    }
}
TEST_F(AttentionHopper, GradientsOfLengthsOfBfloat16) { gradients_of_lengths<bfloat16_t>(112); }
TEST_F(AttentionHopper, GradientsOfLengthsOfHalf) { gradients_of_lengths<half_t>(113); }

template <class Element>
void gradients_of_random_options(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (int i = 0; i < 80 && !testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    auto in = with_random_options<Element>(random, aligned_shape(random, {8, 32, 64, 80, 96, 128, 192, 256, 264, 512}));
    if (random.coin()) {
      in.options.query_offset = random.integer(-50, 200);
      in.options.key_offset   = random.integer(0, 100);
    }
    AttentionHopper::expect_backward(in, random);
  }
}
TEST_F(AttentionHopper, GradientsOfRandomOptionsOfBfloat16) { gradients_of_random_options<bfloat16_t>(114); }
TEST_F(AttentionHopper, GradientsOfRandomOptionsOfHalf) { gradients_of_random_options<half_t>(115); }

/// The difference of two arrays as a part of what is largest.
template <class Array>
void expect_near(const char* name, const Array& a, const Array& b, double relative) {
  double most = 0;
  for (const auto x : b.values) most = std::max(most, std::abs(static_cast<double>(static_cast<float>(x))));
  EXPECT_LE(largest_difference(a, b), relative * most) << name;
}
/// Weights and gradients of scores are rounded to bfloat16 before they are multiplied, results too: 2^-9 each of what is largest.
constexpr double many_roundings = 0x1p-6;

/// A call over many tiles against the portable level, and run after run the same; what it gives and what the portable level does.
std::pair<AttentionGradientArrays<bfloat16_t>, AttentionGradientArrays<bfloat16_t>> expect_near_and_repeated(
    const AttentionCase<bfloat16_t>& in, const AttentionUpstream<bfloat16_t>& upstream) {
  const auto expected = AttentionCall<bfloat16_t>(Level::portable, in).backward(upstream);
  const auto given    = AttentionHopper::backward(in, upstream);
  expect_near("query", given.query, expected.query, many_roundings);
  expect_near("key", given.key, expected.key, many_roundings);
  expect_near("value", given.value, expected.value, many_roundings);
  for (int run = 0; run < 5; ++run) EXPECT_TRUE(AttentionHopper::same_gradients(AttentionHopper::backward(in, upstream), given));
  return {given, expected};
}

TEST_F(AttentionHopper, GradientsOfManyTilesAgreeWithThePortableLevelAndRepeat) {
  SCOPED_TRACE(seed_text());
  Random random(116);
  for (const std::int64_t dim : {64, 128, 192, 256, 512})
    for (const bool causal : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + (causal ? ", causal" : ""));
      AttentionCase<bfloat16_t> in({2, 1500, 1700, 16, 8, dim, dim}, random);
      in.options.causal            = causal;
      const auto upstream          = random_upstream(random, AttentionCall<bfloat16_t>(Level::portable, in).forward(), true);
      const auto [given, expected] = expect_near_and_repeated(in, upstream);
      in.options.deterministic     = false;
      const auto in_any_order      = AttentionHopper::backward(in, upstream);
      expect_near("query, in any order", in_any_order.query, expected.query, many_roundings);
      // of keys and values each block's sums are in one order all the same
      EXPECT_EQ(largest_difference(in_any_order.key, given.key), 0);
      EXPECT_EQ(largest_difference(in_any_order.value, given.value), 0);
    }
}

/// Many blocks of keys against groups of heads, with values of another length, windows that leave parts of blocks out, a sink and dropout.
TEST_F(AttentionHopper, GradientsOfManyTilesOfGroupsAndWindows) {
  SCOPED_TRACE(seed_text());
  Random random(127);
  for (const auto& [head_dim, value_dim] : {std::pair{64, 128}, {128, 64}, {192, 128}, {256, 200}, {512, 320}, {64, 512}})
    for (const std::int64_t window : {100, 700}) {
      AttentionCase<bfloat16_t> in({1, 1500, 1700, 12, 2, head_dim, value_dim}, random);
      SCOPED_TRACE(text(in.shape()) + ", window " + std::to_string(window));
      in.options.causal            = true;
      in.options.window_left       = window;
      in.options.dropout           = {.probability = 0.1, .seed = 5};
      in.sink                      = Array<float, 1>({12}, 0.5f);
      const auto upstream          = random_upstream(random, AttentionCall<bfloat16_t>(Level::portable, in).forward(), true);
      const auto [given, expected] = expect_near_and_repeated(in, upstream);
      expect_near("sink", given.sink, expected.sink, many_roundings);
    }
}

/// Masks broadcast along anything, slopes of all batch entries and of each, tables of one launch and of several.
template <class Element>
void gradients_of_biases(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const std::int64_t dim : {64, 128, 256, 512})
    for (const bool of_batch : {false, true})
      for (const bool of_heads : {false, true})
        for (const bool of_queries : {false, true}) {
          if (testing::Test::HasFailure()) return;
          AttentionCase<Element> in({2, random.any_of(edges), random.any_of(edges), 4, 2, dim, dim}, random);
          SCOPED_TRACE(text(in.shape()) + ", mask" + (of_batch ? " of batch" : "") + (of_heads ? " of heads" : "") +
                       (of_queries ? " of queries" : ""));
          const auto shape = in.shape();
          in.additive_mask = Array<float, 4>({of_batch ? 2 : 1, of_heads ? 4 : 1, of_queries ? shape.queries : 1, shape.keys});
          for (auto& value : in.additive_mask->values) value = random.integer(0, 9) == 0 ? -infinite : random.normal();
          in.alibi_slopes                        = Array<float, 2>({of_batch ? 2 : 1, 4}, 0.02f);
          in.relative_bias                       = Array<float, 2>({of_heads ? 32 : (of_batch ? 1024 : 150), 4});
          in.options.relative_bias.max_distance  = of_heads ? 128 : (of_batch ? 700 : 400);
          in.options.relative_bias.bidirectional = random.coin();
          random.fill_with_normals(*in.relative_bias);
          in.options.causal = random.coin();
          AttentionHopper::expect_backward(in, random);
        }
}
TEST_F(AttentionHopper, GradientsOfBiasesOfBfloat16) { gradients_of_biases<bfloat16_t>(123); }
TEST_F(AttentionHopper, GradientsOfBiasesOfHalf) { gradients_of_biases<half_t>(124); }

TEST_F(AttentionHopper, GradientsOfBiasesOfPackedSequences) {
  SCOPED_TRACE(seed_text());
  Random random(125);
  for (const std::int64_t dim : {64, 128, 256, 512})
    for (const std::int64_t mask_rows : {1, 700}) {
      AttentionCase<bfloat16_t> in({1, 700, 900, 4, 2, dim, dim}, random);
      in.cu_seqlens_q  = {0, 130, 130, 300, 301, 700};
      in.cu_seqlens_k  = {0, 200, 333, 333, 500, 890};
      in.additive_mask = Array<float, 4>({1, mask_rows == 1 ? 4 : 1, mask_rows, 250});
      in.alibi_slopes  = Array<float, 2>({dim == 64 ? 1 : 5, 4}, 0.02f);
      in.relative_bias = Array<float, 2>({32, 4});
      random.fill_with_normals(*in.additive_mask);
      random.fill_with_normals(*in.relative_bias);
      AttentionHopper::expect_backward(in, random);
    }
}

TEST_F(AttentionHopper, GradientsOfBiasesOfManyTilesAgreeWithThePortableLevelAndRepeat) {
  SCOPED_TRACE(seed_text());
  Random random(126);
  for (const std::int64_t dim : {128, 256, 512})
    for (const bool of_queries : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + (of_queries ? ", mask of queries" : ""));
      AttentionCase<bfloat16_t> in({2, 1500, 1700, 8, 2, dim, dim}, random);
      in.additive_mask = Array<float, 4>({1, of_queries ? 1 : 8, of_queries ? 1500 : 1, 1700});
      in.alibi_slopes  = Array<float, 2>({1, 8}, 0.01f);
      in.relative_bias = Array<float, 2>({32, 8});
      random.fill_with_normals(*in.additive_mask);
      random.fill_with_normals(*in.relative_bias);
      in.options.causal   = of_queries;
      const auto upstream = random_upstream(random, AttentionCall<bfloat16_t>(Level::portable, in).forward(), true);
      const auto expected = AttentionCall<bfloat16_t>(Level::portable, in).backward(upstream);
      const auto given    = AttentionHopper::backward(in, upstream);
      // Both levels add up what they have in float.
      expect_near("additive_mask", given.additive_mask, expected.additive_mask, 1e-4);
      expect_near("alibi_slopes", given.alibi_slopes, expected.alibi_slopes, 1e-3);
      expect_near("relative_bias", given.relative_bias, expected.relative_bias, 1e-3);
      for (int run = 0; run < 5; ++run) ASSERT_TRUE(AttentionHopper::same_gradients(AttentionHopper::backward(in, upstream), given));
    }
}

TEST_F(AttentionHopper, EveryRunGivesTheSameBits) {
  Random random(106);
  for (const auto& shape : {AttentionShape{2, 1000, 1000, 8, 2, 128, 128}, AttentionShape{1, 1000, 1000, 64, 1, 512, 512}}) {
    AttentionCase<bfloat16_t> in(shape, random);
    in.options.causal      = true;
    in.options.window_left = shape.head_dim == 512 ? 127 : -1;
    const AttentionCall<bfloat16_t> call(level, in);
    const auto                      first = call.forward();
    for (int run = 0; run < 10; ++run) {
      const auto again = call.forward();
      ASSERT_EQ(largest_difference(again.out, first.out), 0);
      ASSERT_EQ(largest_difference(again.lse, first.lse), 0);
    }
  }
}

#endif

}  // namespace
}  // namespace TributaryTest
