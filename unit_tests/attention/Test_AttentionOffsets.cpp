#include <set>

#include "attention/AttentionFormula.hpp"
#include "attention/RandomOptions.hpp"
#include "attention/Stretches.hpp"

// Stretches of longer sequences, which query_offset and key_offset place: what a ring's ranks and a decoder's steps compute is what one
// call over everything computes, forward and backward, with every option.

namespace TributaryTest {
namespace {

class AttentionOffsets : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionOffsets, testing::ValuesIn(all_levels()), level_name);

Stretch queries_of(const AttentionShape& shape) { return {0, shape.queries}; }

template <class Element>
void stretches_of_keys(Level level, std::uint32_t stream, int cases) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
    const auto in   = with_random_offsets<Element>(random, random_shape(random));
    const auto keys = random_stretches(random, in.shape().keys);
    SCOPED_TRACE("case " + std::to_string(i) + ", " + text(in.shape()) + ", " + text(keys));
    const auto exact = exact_formula(in).forward();
    const auto naive = naive_formula(in).forward();
    expect_close(AttentionCall<Element, float>(level, in).forward(), exact, naive);
    expect_close(streamed(level, in, keys), exact, naive);
    expect_close(merged(level, in, keys), exact, naive);
  }
}
TEST_P(AttentionOffsets, StretchesOfKeysAreTheWholeInFloat) { stretches_of_keys<float>(level(), 70, 30); }
TEST_P(AttentionOffsets, StretchesOfKeysAreTheWholeInBfloat16) { stretches_of_keys<bfloat16_t>(level(), 71, 10); }

template <class Element>
void stretches_of_queries(Level level, std::uint32_t stream, int cases) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
    const auto in      = with_random_offsets<Element>(random, random_shape(random));
    const auto shape   = in.shape();
    const auto queries = random_stretches(random, shape.queries);
    SCOPED_TRACE("case " + std::to_string(i) + ", " + text(shape) + ", " + text(queries));
    expect_the_wholes_rows(level, in, queries);
  }
}
TEST_P(AttentionOffsets, StretchesOfQueriesAreTheWholesRowsInFloat) { stretches_of_queries<float>(level(), 72, 30); }
TEST_P(AttentionOffsets, StretchesOfQueriesAreTheWholesRowsInHalf) { stretches_of_queries<half_t>(level(), 73, 10); }

TEST_P(AttentionOffsets, RowsOfAWindowDoNotDependOnTheirBlock) {  // whose first key differs
  Random               random(74);
  AttentionCase<float> in({1, 301, 700, 2, 1, 16, 8}, random);
  in.options.window_left  = 150;
  in.options.query_offset = 390;
  expect_the_wholes_rows(level(), in, stretches_up_to({1, 77, 78, 301}));
}

// --- backward

/// sum += part, whose rows begin at `first` in one dimension (-1: none), or two.  An extent of 1 is broadcast.
template <class T, int Rank>
void add_part(Array<double, Rank>& sum, const Array<T, Rank>& part, int query_dimension, std::int64_t first_query, int key_dimension = -1,
              std::int64_t first_key = 0) {
  for (std::size_t n = 0; n < part.values.size(); ++n) {
    std::size_t rest = n, at = 0, stride = 1;
    for (std::size_t d = Rank; d-- > 0;) {
      const auto extent = static_cast<std::size_t>(part.extents[d]);
      auto       index  = rest % extent;
      if (static_cast<int>(d) == query_dimension && sum.extents[d] > 1) index += static_cast<std::size_t>(first_query);
      if (static_cast<int>(d) == key_dimension) index += static_cast<std::size_t>(first_key);
      at += index * stride;
      rest /= extent;
      stride *= static_cast<std::size_t>(sum.extents[d]);
    }
    sum.values[at] += static_cast<double>(static_cast<float>(part.values[n]));
  }
}

/// What the stretches of queries and keys give, each from its rows of the whole result, summed as the documentation says.
template <class Element>
AttentionGradientArrays<float> gradients_of_stretches(Level level, const AttentionCase<Element>& in, const AttentionUpstream<float>& up,
                                                      const std::vector<Stretch>& queries, const std::vector<Stretch>& keys) {
  const auto       zeros = []<class T, int Rank>(const Array<T, Rank>& like) { return Array<double, Rank>(like.extents); };
  Array<double, 4> query = zeros(in.query), key = zeros(in.key), value = zeros(in.value);
  Array<double, 4> additive_mask = zeros(in.additive_mask.value_or(Array<float, 4>{}));
  Array<double, 2> alibi_slopes  = zeros(in.alibi_slopes.value_or(Array<float, 2>{})),
                   relative_bias = zeros(in.relative_bias.value_or(Array<float, 2>{}));
  Array<double, 1> sink          = zeros(in.sink.value_or(Array<float, 1>{}));
  for (const Stretch& q : queries)
    for (const Stretch& k : keys) {
      AttentionUpstream<float> part{{part_of(up.forward.out, 1, q), part_of(up.forward.lse, 2, q)}, part_of(up.grad_out, 1, q), {}};
      if (up.grad_lse) part.grad_lse = part_of(*up.grad_lse, 2, q);
      const auto given = AttentionCall<Element, float>(level, stretch_of(in, q, k)).backward(part);
      add_part(query, given.query, 1, q.begin);
      add_part(key, given.key, -1, 0, 1, k.begin);
      add_part(value, given.value, -1, 0, 1, k.begin);
      add_part(additive_mask, given.additive_mask, 2, q.begin, 3, k.begin);
      add_part(alibi_slopes, given.alibi_slopes, -1, 0);
      add_part(relative_bias, given.relative_bias, -1, 0);
      if (&k == &keys.front()) add_part(sink, given.sink, -1, 0);  // the same with every stretch of keys
    }
  const auto floats = []<int Rank>(const Array<double, Rank>& from) {
    Array<float, Rank> to(from.extents);
    for (std::size_t n = 0; n < to.values.size(); ++n) to.values[n] = static_cast<float>(from.values[n]);
    return to;
  };
  return {floats(query), floats(key), floats(value), floats(additive_mask), floats(alibi_slopes), floats(relative_bias), floats(sink)};
}

template <class Element>
void backward_over_stretches(Level level, std::uint32_t stream, int cases) {
  SCOPED_TRACE(seed_text());
  Random random(stream);
  for (int i = 0; i < cases && !testing::Test::HasFailure(); ++i) {
    const auto in      = with_random_offsets<Element>(random, random_shape(random));
    const auto shape   = in.shape();
    const auto queries = random.coin() ? std::vector<Stretch>{queries_of(shape)} : random_stretches(random, shape.queries);
    const auto keys    = random_stretches(random, shape.keys);
    SCOPED_TRACE("case " + std::to_string(i) + ", " + text(shape) + ", queries in " + text(queries) + ", keys in " + text(keys));
    const auto up    = random_upstream(random, AttentionCall<Element, float>(level, in).forward(), random.coin());
    const auto exact = exact_formula(in).backward(up);
    const auto naive = naive_formula(in).backward(up);
    expect_close(AttentionCall<Element, float>(level, in).backward(up), exact, naive);
    expect_close(gradients_of_stretches(level, in, up, queries, keys), exact, naive);
  }
}
TEST_P(AttentionOffsets, GradientsOfStretchesAddUpInFloat) { backward_over_stretches<float>(level(), 75, 25); }
TEST_P(AttentionOffsets, GradientsOfStretchesAddUpInBfloat16) { backward_over_stretches<bfloat16_t>(level(), 76, 10); }

// --- exactly

/// Values that are the identity make the output the matrix of weights: a pair takes part where it is not zero.
AttentionCase<float> weights_case(Random& random, const AttentionShape& wanted) {
  AttentionShape shape = wanted;
  shape.value_dim      = shape.keys;
  AttentionCase<float> in(shape, random);
  in.value = Array<float, 4>(in.value.extents);
  for (std::int64_t b = 0; b < shape.batch; ++b)
    for (std::int64_t j = 0; j < shape.keys; ++j)
      for (std::int64_t h = 0; h < shape.key_heads; ++h) in.value(b, j, h, j) = 1;
  return in;
}

TEST_P(AttentionOffsets, TheSamePairsTakePartHoweverCut) {
  Random random(77);
  auto   in               = weights_case(random, {.batch = 2, .queries = 23, .keys = 50, .heads = 4, .key_heads = 2, .head_dim = 4});
  in.options.causal       = true;
  in.options.window_left  = 17;
  in.options.dropout      = {.probability = 0.3, .seed = 5, .offset = 1};
  in.options.query_offset = 131;
  in.options.key_offset   = 101;
  const auto  whole       = AttentionCall<float>(level(), in).forward();
  std::size_t taken       = 0;
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t i = 0; i < 23; ++i)
      for (std::int64_t h = 0; h < 4; ++h)
        for (std::int64_t j = 0; j < 50; ++j) {
          const auto query = static_cast<std::uint32_t>(131 + i), key = static_cast<std::uint32_t>(101 + j);
          const bool kept  = philox_word(5, {key / 4, query, static_cast<std::uint32_t>(b * 4 + h), 1}, key % 4) >= 0.3 * 0x1p32;
          const bool takes = key <= query && key + 17 >= query && kept;
          ASSERT_EQ(whole.out(b, i, h, j) != 0, takes) << b << " " << i << " " << h << " " << j;
          taken += takes;
        }
  EXPECT_GT(taken, 1000u);
  for (const auto& keys : {std::vector<Stretch>{{0, 13}, {13, 34}, {34, 50}}, {{0, 31}, {31, 31}, {31, 33}, {33, 50}}})
    for (const Result& parts : {streamed(level(), in, keys), merged(level(), in, keys)})
      for (std::size_t n = 0; n < whole.out.values.size(); ++n) {
        ASSERT_EQ(parts.out.values[n] != 0, whole.out.values[n] != 0) << n;
        ASSERT_NEAR(parts.out.values[n], whole.out.values[n], 2e-6f);
      }
}

/// Equal scores and values of small integers: sums are exact, so that rows which lie in one stretch have the whole's bits, and how many
/// keys a row saw is exp(lse).
TEST_P(AttentionOffsets, IntegersAreExact) {
  Random               random(78);
  AttentionCase<float> in({1, 60, 120, 2, 2, 8, 5});
  random.fill_with_integers(in.value, -20, 20);
  in.options.causal       = true;
  in.options.window_left  = 9;
  in.options.query_offset = 70;
  in.options.key_offset   = 40;
  const std::vector<Stretch> keys{{0, 41}, {41, 77}, {77, 120}};
  const auto                 whole  = AttentionCall<float>(level(), in).forward();
  int                        inside = 0;
  for (const Result& parts : {streamed(level(), in, keys), merged(level(), in, keys)})
    for (std::int64_t i = 0; i < 60; ++i) {
      const std::int64_t     begin = 30 + i - 9, end = 30 + i + 1;  // of the keys that are here
      std::set<std::int64_t> seen_from;
      for (const Stretch& stretch : keys)
        if (begin < stretch.end && end > stretch.begin) seen_from.insert(stretch.begin);
      for (std::int64_t h = 0; h < 2; ++h) {
        EXPECT_NEAR(std::exp(static_cast<double>(parts.lse(0, h, i))), 10, 1e-4);
        for (std::int64_t d = 0; d < 5; ++d) {
          float sum = 0;
          for (std::int64_t j = begin; j < end; ++j) sum += in.value(0, j, h, d);
          EXPECT_NEAR(parts.out(0, i, h, d), sum / 10, 1e-5f);
          if (seen_from.size() > 1) continue;
          EXPECT_EQ(bits_of(parts.out(0, i, h, d)), bits_of(whole.out(0, i, h, d))) << i;
          EXPECT_EQ(bits_of(parts.lse(0, h, i)), bits_of(whole.lse(0, h, i))) << i;
          ++inside;
        }
      }
    }
  EXPECT_GT(inside, 400);  // 42 of 60 rows, 2 heads, 5 components, twice
}

TEST_P(AttentionOffsets, TheDefaultIsAlignedAtTheEnd) {
  SCOPED_TRACE(seed_text());
  Random random(79);
  for (int i = 0; i < 30; ++i) {
    const auto shape = random_shape(random);
    auto       in    = with_random_options<float>(random, shape);
    if (shape.queries != shape.keys) in.options.dropout = {};  // counts queries, not their positions, where no offset is given
    SCOPED_TRACE("case " + std::to_string(i) + ", " + text(shape));
    const auto unplaced     = AttentionCall<float>(level(), in).forward();
    const auto up           = random_upstream(random, unplaced, true);
    const auto gradients    = AttentionCall<float>(level(), in).backward(up);
    in.options.query_offset = shape.keys - shape.queries;
    const auto placed       = AttentionCall<float>(level(), in).forward();
    EXPECT_TRUE(same_bits(placed.out, unplaced.out));
    EXPECT_TRUE(same_bits(placed.lse, unplaced.lse));
    const auto same = AttentionCall<float>(level(), in).backward(up);
    EXPECT_TRUE(same_bits(same.query, gradients.query));
    EXPECT_TRUE(same_bits(same.key, gradients.key));
    EXPECT_TRUE(same_bits(same.value, gradients.value));
  }
}

TEST_P(AttentionOffsets, KeysAfterTheQueriesAreNotSeen) {
  Random               random(80);
  AttentionCase<float> in({1, 9, 14, 2, 1, 8, 5}, random);
  in.options.causal       = true;
  in.options.query_offset = 91;
  in.options.key_offset   = 100;
  const AttentionCall<float> call(level(), in);
  const auto                 result    = call.forward();
  const auto                 gradients = call.backward(random_upstream(random, result, true));
  for (const float lse : result.lse.values) EXPECT_EQ(lse, -infinite);
  for (const auto* values : {&result.out.values, &gradients.query.values, &gradients.key.values, &gradients.value.values})
    for (const float value : *values) EXPECT_EQ(value, 0);
  in.options.query_offset = 92;  // the last query sees the first key
  const auto lse          = AttentionCall<float>(level(), in).forward().lse;
  for (std::int64_t h = 0; h < 2; ++h)
    for (std::int64_t i = 0; i < 9; ++i) EXPECT_EQ(lse(0, h, i) > -infinite, i == 8);
}

/// A token at a time, keys kept in a cache, is the same as all at once.
TEST_P(AttentionOffsets, DecodingIsPrefilling) {
  Random               random(81);
  AttentionCase<float> in({2, 40, 40, 4, 2, 16, 8}, random);
  in.options.causal      = true;
  in.options.window_left = 12;
  in.options.rotary      = {.dims = 16};
  in.options.dropout     = {.probability = 0.2, .seed = 3};
  in.alibi_slopes        = Array<float, 2>({1, 4}, 0.1f);
  const auto whole       = AttentionCall<float>(level(), in).forward();
  for (std::int64_t t = 0; t < 40; ++t) {
    const std::int64_t oldest = std::max<std::int64_t>(t - 12, 0);  // what has left the window has left the cache
    auto               step   = stretch_of(in, {t, t + 1}, {oldest, t + 1});
    step.options.query_offset = t;
    step.options.key_offset   = oldest;
    const auto given          = AttentionCall<float>(level(), step).forward();
    EXPECT_LE(largest_difference(given.out, part_of(whole.out, 1, {t, t + 1})), 2e-6) << t;
    EXPECT_LE(largest_difference(given.lse, part_of(whole.lse, 2, {t, t + 1})), 2e-6) << t;
  }
}

}  // namespace
}  // namespace TributaryTest
