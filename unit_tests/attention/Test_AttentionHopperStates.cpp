#include "attention/AttentionHopper.hpp"
#include "attention/RandomOptions.hpp"
#include "attention/Stretches.hpp"

// The Hopper level where a call goes on from another one's state, and where longer sequences are cut into stretches.

namespace TributaryTest {
namespace {

#if defined(TRIBUTARY_ENABLE_SM90)

/// Outputs of the last call in the input's type and in float; states are in float.
template <class Element>
void expect_streamed(const AttentionCase<Element>& in, const std::vector<Stretch>& keys) {
  SCOPED_TRACE(text(in.shape()) + ", keys in " + text(keys));
  const auto exact = exact_formula(in).forward();
  const auto naive = naive_formula(in).forward();
  expect_close(streamed<float>(AttentionHopper::level, in, keys), exact, naive);
  expect_close(streamed<Element>(AttentionHopper::level, in, keys), exact, naive);
  expect_close(merged(AttentionHopper::level, in, keys), exact, naive);
}

template <class Element>
void masked_chunks(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const auto& [head_dim, value_dim] : {std::pair{64, 64}, {64, 24}, {128, 128}, {192, 128}, {256, 256}, {512, 512}}) {
    const AttentionShape shape{1, 140, 300, 2, 1, head_dim, value_dim};
    expect_streamed(masked_case<Element>(random, shape), chunks_of_masked(shape));
  }
}
TEST_F(AttentionHopper, PreviousGoesOnBehindMasksInBfloat16) { masked_chunks<bfloat16_t>(300); }
TEST_F(AttentionHopper, PreviousGoesOnBehindMasksInHalf) { masked_chunks<half_t>(301); }

/// Nothing but a causal window, whose kernel is another one: some rows see no key, some none of the first chunks or of the last ones.
template <class Element>
void windowed_chunks(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const std::int64_t dim : {64, 128, 256, 512}) {
    AttentionCase<Element> in({1, 140, 300, 2, 1, dim, dim}, random);
    in.sink                 = Array<float, 1>({2}, 0.5f);
    in.options.causal       = true;
    in.options.window_left  = 90;
    in.options.query_offset = 990;
    in.options.key_offset   = 1000;
    expect_streamed(in, stretches_up_to({33, 33, 64, 100, 300}));
    in.options.query_offset = 1150;
    expect_streamed(in, stretches_up_to({70, 200, 300}));
  }
}
TEST_F(AttentionHopper, PreviousGoesOnInAWindowOfBfloat16) { windowed_chunks<bfloat16_t>(302); }
TEST_F(AttentionHopper, PreviousGoesOnInAWindowOfHalf) { windowed_chunks<half_t>(303); }

TEST_F(AttentionHopper, APreviousThatSawNothingChangesNothing) {
  SCOPED_TRACE(seed_text());
  Random random(304);
  for (const std::int64_t dim : {64, 128, 256, 512})
    for (const bool masked : {false, true}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + (masked ? ", masked" : ""));
      const AttentionShape  shape{2, 140, 300, 2, 1, dim, dim};
      AttentionCase<half_t> in    = masked ? masked_case<half_t>(random, shape) : AttentionCase<half_t>(shape, random);
      const auto            alone = AttentionCall<half_t, float>(level, in).forward();
      in.previous_out             = Array<float, 4>(alone.out.extents, std::numeric_limits<float>::quiet_NaN());
      in.previous_lse             = Array<float, 3>(alone.lse.extents, -infinite);
      const auto after            = AttentionCall<half_t, float>(level, in).forward();
      EXPECT_EQ(largest_difference(after.out, alone.out), 0);
      EXPECT_EQ(largest_difference(after.lse, alone.lse), 0);
    }
}

/// A state that outweighs all keys is the result, one that is outweighed leaves no trace, and one without keys here is passed through.
TEST_F(AttentionHopper, APreviousOfFarApartScoresStaysFinite) {
  Random random(305);
  for (const std::int64_t dim : {64, 256, 512}) {
    AttentionCase<bfloat16_t> in({1, 70, 130, 2, 1, dim, dim}, random);
    const auto                alone = AttentionCall<bfloat16_t, float>(level, in).forward();
    in.previous_out                 = Array<float, 4>(alone.out.extents, 5.0f);
    in.previous_lse                 = Array<float, 3>(alone.lse.extents, 1e4f);
    auto result                     = AttentionCall<bfloat16_t, float>(level, in).forward();
    for (const float out : result.out.values) ASSERT_EQ(out, 5);
    for (const float lse : result.lse.values) ASSERT_EQ(lse, 1e4f);
    in.previous_lse = Array<float, 3>(alone.lse.extents, -1e4f);
    result          = AttentionCall<bfloat16_t, float>(level, in).forward();
    EXPECT_LE(largest_difference(result.out, alone.out), 1e-6);
    EXPECT_LE(largest_difference(result.lse, alone.lse), 1e-6);
    in.previous_lse = Array<float, 3>(alone.lse.extents, 0.25f);
    in.key_keep     = Array<std::uint8_t, 2>({1, 130});
    result          = AttentionCall<bfloat16_t, float>(level, in).forward();
    for (const float out : result.out.values) ASSERT_EQ(out, 5);
    for (const float lse : result.lse.values) ASSERT_EQ(lse, 0.25f);
  }
}

template <class Element>
void stretches_of_keys(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const std::int64_t dim : {64, 128, 256, 512})
    for (int i = 0; i < 2 && !testing::Test::HasFailure(); ++i) {
      SCOPED_TRACE("case " + std::to_string(i));
      expect_streamed(with_random_offsets<Element>(random, {1, 140, 300, 2, 1, dim, dim}), random_stretches(random, 300));
    }
}
TEST_F(AttentionHopper, StretchesOfKeysAreTheWholeInBfloat16) { stretches_of_keys<bfloat16_t>(306); }
TEST_F(AttentionHopper, StretchesOfKeysAreTheWholeInHalf) { stretches_of_keys<half_t>(307); }

/// Beyond 256 a window with a left end makes the tiles of keys begin where the queries of a tile need it: there the last bits may differ.
template <class Element>
void stretches_of_queries(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const std::int64_t dim : {64, 128, 192, 256, 512})
    for (int i = 0; i < 8 && !testing::Test::HasFailure(); ++i) {
      auto in = with_random_offsets<Element>(random, {1, 300, choice<std::int64_t>(random, {1, 130, 400, 700}), 4, 2, dim, dim});
      if (i % 4 == 0) {  // the kernel of plain scores, a window among the keys
        in                      = AttentionCase<Element>(in.shape(), random);
        in.options.causal       = i == 0;
        in.options.window_left  = 150;
        in.options.query_offset = random.integer(0, 300);
      }
      if (dim > 256) in.options.window_left = -1;
      const auto queries = random_stretches(random, in.shape().queries);
      SCOPED_TRACE("case " + std::to_string(i) + ", " + text(in.shape()) + ", " + text(queries));
      expect_the_wholes_rows(AttentionHopper::level, in, queries);
    }
}
TEST_F(AttentionHopper, StretchesOfQueriesAreTheWholesRowsInBfloat16) { stretches_of_queries<bfloat16_t>(308); }
TEST_F(AttentionHopper, StretchesOfQueriesAreTheWholesRowsInHalf) { stretches_of_queries<half_t>(309); }

#endif

}  // namespace
}  // namespace TributaryTest
