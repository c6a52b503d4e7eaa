#include <cmath>

#include "attention/AttentionHopper.hpp"

// The Hopper level where scores are large, masks infinite or rows hidden.

namespace TributaryTest {
namespace {

#if defined(TRIBUTARY_ENABLE_SM90)

/// By how much of itself a number is off that is rounded to the type.
template <class Element>
constexpr double rounding = std::is_same_v<Element, bfloat16_t> ? 0x1p-8 : 0x1p-11;

/// Sums and scores in float, weights in the input's type.
template <class Element>
Formula<float, Element, float, Element> formula_in_float(const AttentionCase<Element>& in) {
  return {in, FormulaInputs<float>(in)};
}

/// Scores of 8192 and a few more or less, or that less something: half of the components make the 8192.
template <class Element>
AttentionCase<Element> near_scores(Random& random, const AttentionShape& shape) {
  AttentionCase<Element> in(shape, random);
  for (auto* const rows : {&in.query, &in.key})
    for (std::size_t n = 0; n < rows->values.size(); ++n) rows->values[n] = Element(n % 2 == 0 ? 16.0f : random.integer<float>(-1, 1));
  in.options.scale = 8192.0f / static_cast<float>(shape.head_dim / 2 * 16 * 16);  // a power of two
  return in;
}

/// Scores up to some 10^4 of either sign, far apart.
template <class Element>
AttentionCase<Element> far_scores(Random& random, const AttentionShape& shape) {
  AttentionCase<Element> in(shape, random);
  random.fill_with_integers(in.query, -3, 3);
  random.fill_with_integers(in.key, -3, 3);
  in.options.scale = shape.head_dim > 128 ? 32.0f : 64.0f;
  return in;
}

/// Products are sums of integers and scores a power of two times these: exact.  What is left is what float makes of scores of 2^13 times
/// log2(e): its steps are 2^-10 there.  LSE is off by a few of them.  Weights of one row have these in common; they and outputs are
/// rounded to the input's type.  In the backward pass the LSE that is given and the score meet with half a step each, which makes a weight
/// off by 2^-10 of itself, 2^-9 at the most.
///
/// \param query_roundings  of gradients of scores that a query's gradient may be off by
template <class Element>
void expect_large(const AttentionCase<Element>& in, Random& random, bool with_lse, double query_roundings) {
  SCOPED_TRACE(text(in.shape()) + ", scale " + std::to_string(*in.options.scale));
  const auto   exact_of = exact_formula(in);
  const auto   naive_of = formula_in_float(in);
  const auto   exact    = exact_of.forward();
  const auto   naive    = naive_of.forward();
  const double element  = rounding<Element>;
  const auto   floats   = AttentionCall<Element, float>(AttentionHopper::level, in).forward();
  expect_close("out in float", floats.out, exact.out, naive.out, element + 1e-5);
  expect_close("lse", floats.lse, exact.lse, naive.lse, 0x1p-21);
  const auto given = AttentionCall<Element>(AttentionHopper::level, in).forward();
  expect_close("out", given.out, exact.out, naive.out, 2 * element + 1e-5);
  EXPECT_EQ(largest_difference(given.lse, floats.lse), 0);

  const auto upstream  = random_upstream(random, AttentionCall<Element>(Level::portable, in).forward(), with_lse);
  const auto gradients = AttentionHopper::backward(in, upstream);
  const auto right     = exact_of.backward(upstream);
  const auto usual     = naive_of.backward(upstream);
  for (const auto* values : {&gradients.query.values, &gradients.key.values, &gradients.value.values})
    for (const Element value : *values) ASSERT_TRUE(std::isfinite(static_cast<float>(value)));
  expect_close("gradient of query", gradients.query, right.query, usual.query, query_roundings * element + 0x1p-9);
  expect_close("gradient of key", gradients.key, right.key, usual.key, 2 * element + 0x1p-9);
  expect_close("gradient of value", gradients.value, right.value, usual.value, 2 * element + 0x1p-9);
}

template <class Element>
void large_logits(std::uint32_t stream) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (const std::int64_t dim : {64, 128, 256, 512})
    for (const float sign : {1.0f, -1.0f}) {  // below 0 the kernels of all options
      auto in           = near_scores<Element>(random, {1, 130, 200, 1, 1, dim, dim});
      in.options.scale  = sign * *in.options.scale;
      in.options.causal = dim == 128;
      auto far          = far_scores<Element>(random, {1, 130, 200, 1, 1, dim, dim});
      far.options.scale = sign * *far.options.scale;
      // Where all keys have the same component of 16, the gradient of a query's is 16 times a sum of gradients of scores that is next to
      // nothing, but for their roundings.
      expect_large(in, random, random.coin(), 32);
      // Without a gradient of LSE gradients of scores are next to nothing, but where two keys tie.
      expect_large(far, random, true, 4);
    }
}
TEST_F(AttentionHopper, LargeLogitsOfBfloat16) { large_logits<bfloat16_t>(103); }
TEST_F(AttentionHopper, LargeLogitsOfHalf) { large_logits<half_t>(128); }

TEST_F(AttentionHopper, AScaleOfZeroWeighsAllAlike) {
  Random random(129);
  for (const std::int64_t dim : {64, 256, 512}) {
    AttentionCase<half_t> in({1, 130, 300, 1, 1, dim, dim}, random);
    in.options.scale = 0.0f;
    AttentionHopper::expect_forward<half_t>(in);
    AttentionHopper::expect_backward(in, random);
  }
}

/// One head whose products are query * key, all outputs of a row alike.
template <class Element>
AttentionCase<Element> scalar_case(std::int64_t dim, const std::vector<float>& query, const std::vector<float>& key,
                                   const std::vector<float>& value) {
  const auto             count = [](const std::vector<float>& rows) { return static_cast<std::int64_t>(rows.size()); };
  AttentionCase<Element> in({1, count(query), count(key), 1, 1, dim, dim});
  for (std::int64_t i = 0; i < count(query); ++i) in.query(0, i, 0, 0) = Element(query[static_cast<std::size_t>(i)]);
  for (std::int64_t j = 0; j < count(key); ++j) {
    in.key(0, j, 0, 0) = Element(key[static_cast<std::size_t>(j)]);
    for (std::int64_t d = 0; d < dim; ++d) in.value(0, j, 0, d) = Element(value[static_cast<std::size_t>(j)]);
  }
  in.options.scale = 1;
  return in;
}

/// With one key a row's LSE is its capped score.
template <class Element>
void capped_scores() {
  std::vector<float> query;
  for (int exponent = -12; exponent <= 8; ++exponent)
    for (const float mantissa : {1.0f, 1.25f, 1.5f, 1.75f, -1.125f, -1.375f, -1.625f, -1.875f})
      query.push_back(std::ldexp(mantissa, exponent));
  const float cap = 10;
  for (const std::int64_t dim : {64, 512}) {
    auto in            = scalar_case<Element>(dim, query, {1}, {1});
    in.options.softcap = cap;
    const auto result  = AttentionCall<Element, float>(AttentionHopper::level, in).forward();
    for (std::size_t i = 0; i < query.size(); ++i) {
      const double expected = cap * std::tanh(static_cast<double>(query[i]) / cap);
      EXPECT_NEAR(result.lse(0, 0, static_cast<std::int64_t>(i)), expected, std::abs(expected) * 0x1p-19) << query[i];
    }
  }
}
TEST_F(AttentionHopper, CappedScoresOfBfloat16) { capped_scores<bfloat16_t>(); }
TEST_F(AttentionHopper, CappedScoresOfHalf) { capped_scores<half_t>(); }

TEST_F(AttentionHopper, SinksFarFromTheScores) {
  Random random(132);
  for (const std::int64_t dim : {64, 256})
    for (const float sink : {-infinite, -1e30f, -100.0f, 5.0f, 100.0f, 1e4f}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + ", sink " + std::to_string(sink));
      AttentionCase<bfloat16_t> in({1, 90, 130, 2, 1, dim, dim}, random);
      in.sink = Array<float, 1>({2}, sink);
      AttentionHopper::expect_forward<bfloat16_t>(in);
      for (const bool with_lse : {false, true}) {  // whose gradient knows of no sink
        const auto upstream = random_upstream(random, AttentionCall<bfloat16_t>(Level::portable, in).forward(), with_lse);
        expect_close(AttentionHopper::backward(in, upstream), exact_formula(in).backward(upstream), naive_formula(in).backward(upstream));
      }
    }
}

template <class Element>
void huge_masks() {
  Random random(130);
  for (const std::int64_t dim : {64, 128, 256, 512}) {
    SCOPED_TRACE("dim " + std::to_string(dim));
    // a whole row at the least number is a shift, not a hidden row
    auto in                  = scalar_case<Element>(dim, {1, 1}, {1, 2, 3}, {1, 2, 3});
    in.additive_mask         = Array<float, 4>({1, 1, 2, 3});
    in.additive_mask->values = {-1e4f, 1e4f, -1e30f, -3.0e38f, -3.0e38f, -infinite};
    auto result              = AttentionCall<Element, float>(AttentionHopper::level, in).forward();
    for (std::int64_t d = 0; d < dim; ++d) {
      ASSERT_EQ(result.out(0, 0, 0, d), 2);
      ASSERT_EQ(result.out(0, 1, 0, d), 1.5f);  // 1 and 2 vanish beside 3e38
    }
    EXPECT_EQ(result.lse(0, 0, 0), 10002);
    EXPECT_EQ(result.lse(0, 0, 1), -3.0e38f);
    auto gradients =
        AttentionHopper::backward(in, random_upstream(random, AttentionCall<Element>(AttentionHopper::level, in).forward(), true));
    for (const auto* values : {&gradients.query.values, &gradients.key.values, &gradients.value.values})
      for (const Element value : *values) ASSERT_TRUE(std::isfinite(static_cast<float>(value)));
    for (const float value : gradients.additive_mask.values) EXPECT_TRUE(std::isfinite(value));

    in                       = scalar_case<Element>(dim, {1, 1, 1}, {1, 2, 3}, {10, 20, 60});
    in.additive_mask         = Array<float, 4>({1, 1, 3, 3});
    in.additive_mask->values = {infinite, 0, -infinite, infinite, -infinite, infinite, -infinite, -infinite, -infinite};
    result                   = AttentionCall<Element, float>(AttentionHopper::level, in).forward();
    for (std::int64_t d = 0; d < dim; ++d) {
      ASSERT_EQ(result.out(0, 0, 0, d), 10);
      ASSERT_EQ(result.out(0, 1, 0, d), 35);
      ASSERT_EQ(result.out(0, 2, 0, d), 0);
    }
    EXPECT_FALSE(std::isnan(result.lse(0, 0, 0)) || std::isnan(result.lse(0, 0, 1)));
    EXPECT_EQ(result.lse(0, 0, 2), -infinite);
    gradients = AttentionHopper::backward(in, random_upstream(random, AttentionCall<Element>(AttentionHopper::level, in).forward(), true));
    for (const auto* values : {&gradients.query.values, &gradients.key.values, &gradients.value.values})
      for (const Element value : *values) ASSERT_FALSE(std::isnan(static_cast<float>(value)));
    for (const float value : gradients.additive_mask.values) EXPECT_FALSE(std::isnan(value));
  }
}
TEST_F(AttentionHopper, HugeAndInfiniteAdditiveMasksOfBfloat16) { huge_masks<bfloat16_t>(); }
TEST_F(AttentionHopper, HugeAndInfiniteAdditiveMasksOfHalf) { huge_masks<half_t>(); }

TEST_F(AttentionHopper, EveryRowHidden) {
  Random random(131);
  for (const std::int64_t dim : {64, 128, 256, 512})
    for (const int how : {0, 1, 2, 3}) {
      SCOPED_TRACE("dim " + std::to_string(dim) + ", " + std::to_string(how));
      AttentionCase<bfloat16_t> in({1, 133, 265, 2, 1, dim, dim}, random);
      if (how == 0) in.key_keep = Array<std::uint8_t, 2>({1, 265});
      if (how == 1) in.additive_mask = Array<float, 4>({1, 1, 1, 265}, -infinite);
      if (how == 2) in.options.causal = true, in.options.window_left = 0, in.keep = Array<std::uint8_t, 4>({1, 2, 133, 265});
      if (how == 3) in.options.causal = true, in.options.query_offset = 0, in.options.key_offset = 133;
      in.sink           = Array<float, 1>({2}, 0.5f);
      const auto result = AttentionCall<bfloat16_t, float>(level, in).forward();
      for (const float out : result.out.values) ASSERT_EQ(out, 0);
      for (const float lse : result.lse.values) ASSERT_EQ(lse, -infinite);
      const auto gradients = AttentionHopper::backward(in, random_upstream(random, AttentionCall<bfloat16_t>(level, in).forward(), true));
      for (const auto* values : {&gradients.query.values, &gradients.key.values, &gradients.value.values})
        for (const bfloat16_t value : *values) ASSERT_EQ(static_cast<float>(value), 0);
      for (const auto* values : {&gradients.additive_mask.values, &gradients.sink.values})
        for (const float value : *values) ASSERT_EQ(value, 0);
    }
}

TEST_F(AttentionHopper, RowsWithoutALegalKeyAreZeroWithZeroGradients) {
  SCOPED_TRACE(seed_text());
  Random     random(132);
  const auto none = [](std::int64_t b, std::int64_t i) { return (b == 0 && i % 3 == 0) || (b == 1 && i < 130); };
  for (const std::int64_t dim : {64, 128, 256, 512}) {
    AttentionCase<bfloat16_t> in({2, 140, 200, 2, 1, dim, dim}, random);
    in.keep = Array<std::uint8_t, 4>({2, 1, 140, 200}, 1);
    in.sink = Array<float, 1>({2}, 0.5f);
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t i = 0; i < 140; ++i)
        for (std::int64_t j = 0; none(b, i) && j < 200; ++j) (*in.keep)(b, 0, i, j) = 0;
    AttentionHopper::expect_forward<bfloat16_t>(in);
    const auto result      = AttentionCall<bfloat16_t>(level, in).forward();
    const auto expect_zero = [&](const Array<bfloat16_t, 4>& rows) {
      for (std::int64_t b = 0; b < 2; ++b)
        for (std::int64_t i = 0; i < 140; ++i)
          for (std::int64_t h = 0; h < 2; ++h)
            for (std::int64_t d = 0; d < dim && none(b, i); ++d) ASSERT_EQ(static_cast<float>(rows(b, i, h, d)), 0);
    };
    expect_zero(result.out);
    for (std::int64_t b = 0; b < 2; ++b)
      for (std::int64_t h = 0; h < 2; ++h)
        for (std::int64_t i = 0; i < 140; ++i) ASSERT_EQ(result.lse(b, h, i) == -infinite, none(b, i));
    AttentionHopper::expect_backward(in, random);
    expect_zero(AttentionHopper::backward(in, random_upstream(random, result, true)).query);
  }
}

#endif

}  // namespace
}  // namespace TributaryTest
