#include "indexer/IndexerCase.hpp"

// The indexer on inputs whose scores are exact: types, shapes from the edges, layouts, special values.

namespace TributaryTest {
namespace {

class Indexer : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, Indexer, testing::ValuesIn(all_levels()), level_name);

TEST_P(Indexer, SumsTheWeightedPositivePartsOverHeads) {
  IndexerInputs<float> in({1, 1, 3, 2, 2});
  in.query.values   = {1, 2, -1, 1};
  in.key.values     = {1, 1, 2, 0, -3, 1};
  in.weights.values = {2, -3};
  // dot products: head 0: 3, 2, -1; head 1: 0, -2, 4
  const IndexerCall<float> call(level(), in);
  EXPECT_EQ(call.score(3).values, (std::vector<float>{6, 4, -12}));
  const Rows rows = call.topk(4);
  EXPECT_EQ(rows.indices.values, (std::vector<std::int32_t>{0, 1, 2, -1}));
  EXPECT_EQ(rows.scores.values, (std::vector<float>{6, 4, -12, -infinity}));
}

TEST_P(Indexer, FoldsBothScalesIntoTheScore) {
  IndexerInputs<float8_e4m3_t> in({1, 1, 2, 2, 1});
  in.query.values       = {float8_e4m3_t(2), float8_e4m3_t(3)};
  in.key.values         = {float8_e4m3_t(1), float8_e4m3_t(5)};
  in.weights.values     = {1, 10};
  in.query_scale.values = {4, 0.5f};
  in.key_scale.values   = {8, 0.25f};
  EXPECT_EQ(IndexerCall<float8_e4m3_t>(level(), in).score(2).values, (std::vector<float>{(8 + 15) * 8, (40 + 75) * 0.25f}));
}

template <class Element>
void shapes_from_the_edges(Level level) {
  SCOPED_TRACE(seed_text());
  Random random(1);
  // groups of 8 heads, groups of 4 to 32 keys and tiles of up to 1024, blocks of 4 to 64 queries
  for (const IndexerShape& shape : {IndexerShape{1, 1, 1, 1, 1},
                                    {1, 5, 31, 1, 3},
                                    {2, 7, 32, 5, 33},
                                    {3, 2, 33, 8, 16},
                                    {1, 65, 7, 12, 64},
                                    {2, 4, 127, 64, 2},
                                    {1, 3, 1025, 1, 32},
                                    {1, 13, 97, 9, 127},
                                    {1, 2, 64, 7, 128},
                                    {1, 64, 8, 4, 1},
                                    {1, 1, 2053, 2, 5},
                                    {2, 63, 17, 16, 31}}) {
    const auto in = integer_inputs<Element>(random, shape);
    expect_exact(level, in, {}, {1, 7, shape.keys, shape.keys + 3});
  }
  // nothing to do
  for (const IndexerShape& shape : {IndexerShape{1, 3, 0, 2, 4}, {2, 0, 9, 2, 4}, {0, 3, 9, 2, 4}, {1, 0, 0, 1, 1}})
    expect_exact(level, integer_inputs<Element>(random, shape), {}, {1, 5});
}

TEST_P(Indexer, FloatShapes) { shapes_from_the_edges<float>(level()); }
TEST_P(Indexer, Bfloat16Shapes) { shapes_from_the_edges<bfloat16_t>(level()); }
TEST_P(Indexer, HalfShapes) { shapes_from_the_edges<half_t>(level()); }
TEST_P(Indexer, Float8Shapes) { shapes_from_the_edges<float8_e4m3_t>(level()); }

TEST_P(Indexer, ByIndexChoosesTheSameKeys) {
  SCOPED_TRACE(seed_text());
  Random random(2);
  expect_exact(level(), integer_inputs<float>(random, {2, 9, 301, 3, 8}), {}, {1, 50, 301, 400}, {.order = TopkOrder::by_index});
}

TEST_P(Indexer, RandomShapes) {
  SCOPED_TRACE(seed_text());
  Random                          random(3);
  const std::vector<std::int64_t> heads = {1, 2, 5, 8, 12, 17}, dims = {1, 2, 7, 16, 31, 32, 64};
  for (int i = 0; i < 25; ++i) {
    const IndexerShape shape{random.integer(1, 3), random.integer(0, 40), random.integer(0, 300), random.any_of(heads),
                             random.any_of(dims)};
    expect_exact(level(), integer_inputs<bfloat16_t>(random, shape),
                 {.ratio = random.integer<std::int32_t>(0, 5), .query_offset = random.integer<std::int32_t>(0, 300)},
                 {random.integer(1, 64), random.integer(1, 320)},
                 {.order         = random.coin() ? TopkOrder::by_score : TopkOrder::by_index,
                  .chunk_queries = random.integer(0, 9),
                  .chunk_keys    = random.integer(0, 2) * random.integer(0, 90),
                  .key_splits    = random.integer(0, 5)});
  }
}

TEST_P(Indexer, OneSequenceWithoutABatchAndWithoutScores) {
  Random                           random(4);
  const auto                       in       = integer_inputs<float8_e4m3_t>(random, {1, 6, 50, 3, 9});
  const auto                       scores   = expected_scores(in, {.ratio = 1, .query_offset = 40}, 50);
  const Rows                       expected = expected_indexer_topk(scores, {.ratio = 1, .query_offset = 40}, 50, 45);
  const IndexerCall<float8_e4m3_t> call(level(), in, {.ratio = 1, .query_offset = 40});
  const auto                       query   = Kokkos::subview(call.query, 0, Kokkos::ALL, Kokkos::ALL, Kokkos::ALL);
  const auto                       key     = Kokkos::subview(call.key, 0, Kokkos::ALL, Kokkos::ALL);
  const auto                       weights = Kokkos::subview(call.weights, 0, Kokkos::ALL, Kokkos::ALL);
  auto                             options = call.options;
  options.query_scale                      = Kokkos::subview(call.query_scale, 0, Kokkos::ALL, Kokkos::ALL);
  options.key_scale                        = Kokkos::subview(call.key_scale, 0, Kokkos::ALL);

  const View<float, 2> all("all", 6, 50);
  Tributary::indexer_score(Space{}, query, key, weights, all, options);
  EXPECT_EQ(from_space<2>(all).values, scores.values);
  const View<std::int32_t, 2> indices("indices", 6, 45);
  const View<float, 2>        best("best", 6, 45);
  Tributary::indexer_topk(query, key, weights, indices, best, options);  // the default instance
  EXPECT_EQ(from_space<2>(indices).values, expected.indices.values);
  EXPECT_EQ(from_space<2>(best).values, expected.scores.values);
  Kokkos::deep_copy(indices, -7);
  Tributary::indexer_topk(Space{}, query, key, weights, indices, std::nullopt, options);
  EXPECT_EQ(from_space<2>(indices).values, expected.indices.values);
}

TEST_P(Indexer, StridedViewsTouchOnlyTheirElements) {
  SCOPED_TRACE(seed_text());
  Random random(5);
  // every argument is the middle of a larger array
  const auto               wide = integer_inputs<float>(random, {2, 9, 70, 7, 12});
  const IndexerCall<float> call(level(), wide);
  const Kokkos::pair       rows(2, 8), keys(5, 66), heads(1, 6), dims(3, 11), chosen(4, 24);
  IndexerInputs<float>     in({2, 6, 61, 5, 8});
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t t = 0; t < 6; ++t)
      for (std::int64_t h = 0; h < 5; ++h) {
        in.weights(b, t, h) = wide.weights(b, t + 2, h + 1);
        for (std::int64_t d = 0; d < 8; ++d) in.query(b, t, h, d) = wide.query(b, t + 2, h + 1, d + 3);
      }
    for (std::int64_t s = 0; s < 61; ++s)
      for (std::int64_t d = 0; d < 8; ++d) in.key(b, s, d) = wide.key(b, s + 5, d + 3);
  }
  const auto query   = Kokkos::subview(call.query, Kokkos::ALL, rows, heads, dims);
  const auto key     = Kokkos::subview(call.key, Kokkos::ALL, keys, dims);
  const auto weights = Kokkos::subview(call.weights, Kokkos::ALL, rows, heads);
  Rows       outputs(2, 9, 30);
  const auto all     = in_space(Array<float, 3>({2, 9, 70}, 7.0f));
  const auto indices = in_space(outputs.indices);
  const auto best    = in_space(outputs.scores);
  Tributary::indexer_score(Space{}, query, key, weights, Kokkos::subview(all, Kokkos::ALL, rows, keys), call.options);
  Tributary::indexer_topk(Space{}, query, key, weights, Kokkos::subview(indices, Kokkos::ALL, rows, chosen),
                          Kokkos::subview(best, Kokkos::ALL, rows, chosen), call.options);

  const auto      scores = expected_scores(in, {}, 61);
  const Rows      top    = expected_indexer_topk(scores, {}, 61, 20);
  Array<float, 3> expected_all({2, 9, 70}, 7.0f);
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t t = 0; t < 6; ++t) {
      for (std::int64_t s = 0; s < 61; ++s) expected_all(b, t + 2, s + 5) = scores(b, t, s);
      for (std::int64_t i = 0; i < 20; ++i) {
        outputs.indices(b, t + 2, i + 4) = top.indices(b, t, i);
        outputs.scores(b, t + 2, i + 4)  = top.scores(b, t, i);
      }
    }
  EXPECT_TRUE(same_bits(from_space<3>(all), expected_all));
  EXPECT_TRUE(same_bits(from_space<3>(indices), outputs.indices));
  EXPECT_TRUE(same_bits(from_space<3>(best), outputs.scores));
}

/// Scores with infinities and NaN: the same value, and NaN for NaN whatever its bits.
void expect_same_special(const Array<float, 3>& given, const Array<float, 3>& expected) {
  for (std::size_t i = 0; i < expected.values.size(); ++i) {
    if (std::isnan(expected.values[i]))
      EXPECT_TRUE(std::isnan(given.values[i])) << "score " << i << " is " << given.values[i] << ", expected NaN";
    else
      EXPECT_EQ(given.values[i], expected.values[i]) << "score " << i;
  }
}

template <class Element>
void special_values(Level level, std::int64_t heads, const std::vector<float>& special) {
  SCOPED_TRACE("H " + std::to_string(heads));
  Random random(6);
  auto   in = integer_inputs<Element>(random, {1, 6, 70, heads, 3});
  // no zero meets an infinity by chance
  for (auto& value : in.query.values)
    if (static_cast<float>(value) == 0.0f) value = Element(1.0f);
  for (auto& value : in.weights.values)
    if (value == 0.0f) value = -1.0f;
  for (std::size_t i = 0; i < special.size(); ++i) in.key(0, 3 + 11 * i, i % 3) = Element(special[i]);
  in.query(0, 4, heads - 1, 1)        = Element(nan);
  in.weights(0, 5, 0)                 = nan;
  const auto                 expected = expected_scores(in, {}, 70);
  const IndexerCall<Element> call(level, in);
  expect_same_special(call.score(70), expected);
  for (const std::int64_t k : {5, 70}) EXPECT_TRUE(same_rows(call.topk(k), expected_indexer_topk(expected, {}, 70, k)));
}

TEST_P(Indexer, NanAndInfinitiesGoThroughTheFormula) {
  for (const std::int64_t heads : {1, 5, 8, 12}) {
    special_values<float>(level(), heads, {nan, infinity, -infinity, nan, infinity});
    special_values<bfloat16_t>(level(), heads, {infinity, nan, -infinity});
    special_values<half_t>(level(), heads, {infinity, nan, -infinity});
    special_values<float8_e4m3_t>(level(), heads, {nan, 448, -448});
  }
}

TEST_P(Indexer, AnInfiniteKeyIsRuledOutOnlyByTheSignOfItsProduct) {
  // one head and three: neither fills a group of heads
  for (const std::int64_t heads : {1, 3}) {
    IndexerInputs<float> in({1, 2, 2, heads, 1});
    for (std::int64_t h = 0; h < heads; ++h) in.query(0, 0, h, 0) = 1, in.query(0, 1, h, 0) = -1;
    in.weights.values.assign(in.weights.values.size(), 1.0f);
    in.key.values = {infinity, 1};
    EXPECT_EQ(IndexerCall<float>(level(), in).score(2).values, (std::vector<float>{infinity, static_cast<float>(heads), 0, 0}));
  }
}

TEST_P(Indexer, ReluKeepsNan) {
  IndexerInputs<float> in({1, 1, 2, 1, 1});
  in.query.values   = {1};
  in.weights.values = {1};
  in.key.values     = {nan, -5};
  const Rows rows   = IndexerCall<float>(level(), in).topk(2);
  EXPECT_EQ(rows.indices.values, (std::vector<std::int32_t>{1, 0}));
  EXPECT_EQ(rows.scores.values[0], 0.0f);
  EXPECT_EQ(bits_of(rows.scores.values[1]), 0x7fc00000u);
}

// A threshold may be NaN or zero of either sign; what comes after the cut that set it may be, too.
TEST_P(Indexer, NanAndZerosAcrossCuts) {
  Random               random(8);
  IndexerInputs<float> in({1, 2, 4000, 1, 1});
  in.query.values   = {1, 1};
  in.weights.values = {1, -1};  // the second: -0 for every negative key
  for (const std::int64_t first_number : {0, 1500, 3990}) {
    for (std::int64_t j = 0; j < 4000; ++j) in.key(0, j, 0) = j < first_number || j % 3 == 0 ? nan : random.integer<float>(-9, 9);
    const IndexerCall<float> call(level(), in);
    const auto               scores = call.score(4000);
    for (const std::int64_t k : {1, 20, 700, 3000})
      EXPECT_TRUE(same_rows(call.topk(k), expected_indexer_topk(scores, {}, 4000, k))) << "k " << k << ", numbers from " << first_number;
  }
}

TEST_P(Indexer, ABestKeyThatComesLateByOneUnitInTheLastPlace) {
  IndexerInputs<float> in({1, 1, 9000, 1, 1});
  in.query.values   = {1};
  in.weights.values = {1};
  in.key.values.assign(9000, 1);
  for (const std::int64_t late : {5000, 8999}) in.key(0, late, 0) = std::nextafter(1.0f, 2.0f);
  expect_exact(level(), in, {}, {1, 2, 20, 700});
}

TEST_P(Indexer, AllScoresNegativeOrEqual) {
  Random random(7);
  auto   in = integer_inputs<float>(random, {1, 3, 1500, 2, 4});
  for (auto& weight : in.weights.values) weight = -1;
  expect_exact(level(), in, {}, {1, 600});
  for (auto& weight : in.weights.values) weight = 0;  // nothing but ties
  expect_exact(level(), in, {}, {1, 600});
}

}  // namespace
}  // namespace TributaryTest
