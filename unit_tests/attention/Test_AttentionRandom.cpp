#include "attention/AttentionFormula.hpp"
#include "attention/RandomOptions.hpp"

// Forward and backward over shapes from the edges and random combinations of every option, against the unfused formula.

namespace TributaryTest {
namespace {

class AttentionRandom : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionRandom, testing::ValuesIn(all_levels()), level_name);

template <class Element, class Out = Element>
void random_options(Level level, std::uint32_t stream, int cases) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    expect_formula<Out>(level, with_random_options<Element>(random, random_shape(random)), random);
  }
}

TEST_P(AttentionRandom, FloatOptions) { random_options<float>(level(), 1, 40); }
TEST_P(AttentionRandom, Bfloat16Options) { random_options<bfloat16_t>(level(), 2, 20); }
TEST_P(AttentionRandom, HalfOptions) { random_options<half_t>(level(), 3, 20); }
TEST_P(AttentionRandom, FloatOutOfBfloat16) { random_options<bfloat16_t, float>(level(), 4, 10); }
TEST_P(AttentionRandom, FloatOutOfHalf) { random_options<half_t, float>(level(), 5, 10); }

template <class Element>
void head_dimensions(Level level, std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const std::int64_t dims : {1, 3, 32, 33, 64, 96, 128, 192, 256, 512}) {
    expect_formula<Element>(level, AttentionCase<Element>({1, 17, 33, 2, 1, dims, dims}, random), random);
    expect_formula<Element>(
        level, with_random_options<Element>(random, {2, 5, 70, 2, 2, dims, choice<std::int64_t>(random, {1, 40, 128, 512})}), random);
  }
}
TEST_P(AttentionRandom, FloatHeadDimensions) { head_dimensions<float>(level(), 6); }
TEST_P(AttentionRandom, Bfloat16HeadDimensions) { head_dimensions<bfloat16_t>(level(), 7); }
TEST_P(AttentionRandom, HalfHeadDimensions) { head_dimensions<half_t>(level(), 8); }

TEST_P(AttentionRandom, LengthsFromTheEdges) {
  SCOPED_TRACE(seed_text());
  Random random(9);
  for (const std::int64_t queries : {0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65})
    for (const std::int64_t keys : {0, 1, 16, 17, 31, 32, 33, 63, 64, 65, 129}) {
      AttentionCase<float> in({1, queries, keys, 2, 1, 8, 5}, random);
      in.options.causal = random.coin();
      expect_formula<float>(level(), in, random);
    }
}

TEST_P(AttentionRandom, LongRows) {
  SCOPED_TRACE(seed_text());
  Random random(10);
  expect_formula<float>(level(), AttentionCase<float>({1, 3, 2503, 2, 2, 16, 16}, random), random);
  expect_formula<bfloat16_t>(level(), with_random_options<bfloat16_t>(random, {1, 1031, 7, 2, 1, 16, 8}), random);
  AttentionCase<float> window({1, 601, 601, 1, 1, 8, 8}, random);
  window.options.window_left  = 40;
  window.options.window_right = 3;
  expect_formula<float>(level(), window, random);
}

}  // namespace
}  // namespace TributaryTest
