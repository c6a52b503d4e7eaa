#include "attention/AttentionFormula.hpp"
#include "attention/Stretches.hpp"

// Keys in chunks: through `previous`, through attention_merge, and what a merge is.

namespace TributaryTest {
namespace {

class AttentionStreaming : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionStreaming, testing::ValuesIn(all_levels()), level_name);

constexpr AttentionShape masked{2, 19, 150, 4, 2, 16, 24};

template <class Element>
void previous_goes_on(Level level) {
  Random     random(40);
  const auto in = masked_case<Element>(random, masked);
  expect_close(streamed(level, in, chunks_of_masked(masked)), exact_formula(in).forward(), naive_formula(in).forward());
}
TEST_P(AttentionStreaming, PreviousGoesOnInFloat) { previous_goes_on<float>(level()); }
TEST_P(AttentionStreaming, PreviousGoesOnInBfloat16) { previous_goes_on<bfloat16_t>(level()); }

TEST_P(AttentionStreaming, APreviousThatSawNothingChangesNothing) {
  Random     random(41);
  auto       in    = masked_case<float>(random, masked);
  const auto alone = AttentionCall<float>(level(), in).forward();
  in.previous_out  = Array<float, 4>(alone.out.extents, std::numeric_limits<float>::quiet_NaN());  // not looked at
  in.previous_lse  = Array<float, 3>(alone.lse.extents, -infinite);
  const auto after = AttentionCall<float>(level(), in).forward();
  EXPECT_LE(largest_difference(after.out, alone.out), 1e-6);
  EXPECT_LE(largest_difference(after.lse, alone.lse), 1e-6);
}

std::vector<Result> states_of_chunks(Level level, const AttentionCase<float>& in) {
  std::vector<Result> states;
  for (const Stretch& keys : chunks_of_masked(in.shape())) {
    auto part = stretch_of(in, {0, in.shape().queries}, keys);
    part.sink.reset();
    states.push_back(AttentionCall<float>(level, part).forward());
  }
  return states;
}

void expect_near(const Result& a, const Result& b) {
  EXPECT_LE(largest_difference(a.out, b.out), 2e-6);
  EXPECT_LE(largest_difference(a.lse, b.lse), 2e-6);
}

TEST_P(AttentionStreaming, MergedChunksAreTheWhole) {
  Random     random(42);
  const auto in     = masked_case<float>(random, masked);
  const auto states = states_of_chunks(level(), in);
  expect_close(merge(level(), states, in.sink), exact_formula(in).forward(), naive_formula(in).forward());
}

TEST_P(AttentionStreaming, MergeIsAssociativeAndCommutative) {
  Random       random(43);
  const auto   states = states_of_chunks(level(), masked_case<float>(random, masked));
  const Result whole  = merge(level(), states);
  expect_near(merge(level(), {states[3], states[1], states[4], states[0], states[2]}), whole);
  expect_near(merge(level(), {merge(level(), {states[0], states[1], states[2]}), merge(level(), {states[3], states[4]})}), whole);
}

TEST_P(AttentionStreaming, NothingSeenIsTheIdentityOfMerge) {
  Random       random(44);
  const Result state = states_of_chunks(level(), masked_case<float>(random, masked))[3];
  const Result nothing{Array<float, 4>(state.out.extents, std::numeric_limits<float>::quiet_NaN()),
                       Array<float, 3>(state.lse.extents, -infinite)};
  expect_near(merge(level(), {state, nothing}), state);
  expect_near(merge(level(), {nothing, state}), state);
  const Result both = merge(level(), {nothing, nothing}, Array<float, 1>({4}, 1.0f));
  for (const float out : both.out.values) EXPECT_EQ(out, 0);
  for (const float lse : both.lse.values) EXPECT_EQ(lse, -infinite);
}

TEST_P(AttentionStreaming, MergeOfFarApartStatesStaysFinite) {
  Result small{Array<float, 4>({1, 2, 1, 3}, 1.0f), Array<float, 3>({1, 1, 2}, -1e4f)},
      large{Array<float, 4>({1, 2, 1, 3}, 5.0f), Array<float, 3>({1, 1, 2}, 1e4f)};
  for (const Result& result : {merge(level(), {small, large}), merge(level(), {large, small})}) {
    for (const float out : result.out.values) EXPECT_EQ(out, 5);
    for (const float lse : result.lse.values) EXPECT_EQ(lse, 1e4f);
  }
}

TEST_P(AttentionStreaming, MergeIntoAStateItself) {
  Random                              random(45);
  const auto                          states   = states_of_chunks(level(), masked_case<float>(random, masked));
  const Result                        expected = merge(level(), {states[1], states[3]});
  const auto                          out0 = in_space(states[1].out), out1 = in_space(states[3].out);
  const auto                          lse0 = in_space(states[1].lse), lse1 = in_space(states[3].lse);
  const std::array<AttentionState, 2> inputs{AttentionState{out0, lse0}, AttentionState{out1, lse1}};
  Tributary::attention_merge(Space{}, inputs, out1, lse1, {.level = level()});
  EXPECT_EQ(largest_difference(from_space<4>(out1), expected.out), 0);
  EXPECT_EQ(largest_difference(from_space<3>(lse1), expected.lse), 0);
  EXPECT_EQ(largest_difference(from_space<4>(out0), states[1].out), 0);
}

TEST_P(AttentionStreaming, MergeOfOneAppliesTheSink) {
  const Result state{Array<float, 4>({1, 1, 2, 1}, 3.0f), Array<float, 3>({1, 2, 1}, 0.5f)};
  const Result result = merge(level(), {state}, row<float>({0.5f, -infinite}));
  EXPECT_NEAR(result.out(0, 0, 0, 0), 1.5f, 1e-6f);
  EXPECT_EQ(result.out(0, 0, 1, 0), 3);
  EXPECT_EQ(result.lse.values, state.lse.values);  // without the sink
}

TEST_P(AttentionStreaming, MergeIntoHalfWithoutLse) {
  Random                              random(46);
  const auto                          states   = states_of_chunks(level(), masked_case<float>(random, masked));
  const Result                        expected = merge(level(), {states[0], states[4]});
  const auto                          out0 = in_space(states[0].out), out1 = in_space(states[4].out);
  const auto                          lse0 = in_space(states[0].lse), lse1 = in_space(states[4].lse);
  const std::array<AttentionState, 2> inputs{AttentionState{out0, lse0}, AttentionState{out1, lse1}};
  const auto                          out = in_space(Array<half_t, 4>(states[0].out.extents));
  Tributary::attention_merge(Space{}, inputs, out, std::nullopt, {.level = level()});
  const auto given = from_space<4>(out);
  for (std::size_t n = 0; n < given.values.size(); ++n)
    EXPECT_NEAR(static_cast<float>(given.values[n]), expected.out.values[n], 1e-3f * std::abs(expected.out.values[n]) + 1e-6f);
}

}  // namespace
}  // namespace TributaryTest
