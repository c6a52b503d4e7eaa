#include <cmath>
#include <numeric>

#include "topk/TopkCase.hpp"

// What topk chooses: order, ties, special values, padding, shapes, types, ranges, layouts.

namespace TributaryTest {
namespace {

class Topk : public TopkLevelTest {
 public:
  template <class Value>
  static void expect_right(const Array<Value, 3>& values, std::int64_t top_k, const TopkOptions& options = {}, const Range& range = {}) {
    if (level() == Level::hopper && std::min(top_k, values.extents[2]) > hopper_top_k) return;
    EXPECT_TRUE(same_rows(topk_of(level(), values, top_k, options, range), expected_topk(values, top_k, options.order, range)))
        << "rows " << values.extents[0] << " x " << values.extents[1] << ", n " << values.extents[2] << ", k " << top_k << ", chunk_keys "
        << options.chunk_keys << ", key_splits " << options.key_splits << (options.order == TopkOrder::by_index ? ", by_index" : "");
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, Topk, testing::ValuesIn(with_hopper(all_levels())), level_name);

using Indices = std::vector<std::int32_t>;

TEST_P(Topk, HigherScoreComesFirst) {
  const auto rows = topk_of(level(), one_row<float>({1, 4, -2, 3}), 3);
  EXPECT_EQ(rows.indices.values, (Indices{1, 3, 0}));
  EXPECT_EQ(rows.scores.values, (std::vector<float>{4, 3, 1}));
}

TEST_P(Topk, EqualScoresKeepTheSmallerIndex) {
  EXPECT_EQ(topk_of(level(), one_row<float>({1, 3, 3, 2, 3}), 2).indices.values, (Indices{1, 2}));
  EXPECT_EQ(topk_of(level(), one_row<float>({1, 3, 3, 2, 3}), 4).indices.values, (Indices{1, 2, 4, 3}));
}

TEST_P(Topk, NegativeZeroEqualsZeroAndComesBackAsZero) {
  const auto rows = topk_of(level(), one_row<float>({-1, -0.0f, 0.0f, -0.0f, 0.0f}), 4);
  EXPECT_EQ(rows.indices.values, (Indices{1, 2, 3, 4}));
  for (const float score : rows.scores.values) EXPECT_EQ(bits_of(score), 0u);
}

TEST_P(Topk, NanRanksBelowMinusInfinity) {
  const float negative_nan = Kokkos::bit_cast<float>(0xffc01234u), signalling = Kokkos::bit_cast<float>(0x7f800001u);
  const auto  rows = topk_of(level(), one_row<float>({negative_nan, -infinity, signalling, 2, infinity}), 5);
  EXPECT_EQ(rows.indices.values, (Indices{4, 3, 1, 0, 2}));
  EXPECT_EQ(bits_of(rows.scores.values[3]), 0x7fc00000u);
  EXPECT_EQ(bits_of(rows.scores.values[4]), 0x7fc00000u);
}

TEST_P(Topk, MissingEntriesArePaddedAtTheEndInBothOrders) {
  const auto values   = one_row<float>({1, -infinity, nan, 5});
  const auto by_score = topk_of(level(), values, 6);
  EXPECT_EQ(by_score.indices.values, (Indices{3, 0, 1, 2, -1, -1}));
  EXPECT_EQ(by_score.scores.values[4], -infinity);
  EXPECT_EQ(by_score.scores.values[5], -infinity);
  const auto by_index = topk_of(level(), values, 6, {.order = TopkOrder::by_index});
  EXPECT_EQ(by_index.indices.values, (Indices{0, 1, 2, 3, -1, -1}));
  EXPECT_EQ(bits_of(by_index.scores.values[2]), 0x7fc00000u);
  EXPECT_EQ(by_index.scores.values[5], -infinity);
}

TEST_P(Topk, ByIndexChoosesTheSameEntries) {
  const auto rows = topk_of(level(), one_row<float>({7, 9, 1, 8, 9}), 3, {.order = TopkOrder::by_index});
  EXPECT_EQ(rows.indices.values, (Indices{1, 3, 4}));
  EXPECT_EQ(rows.scores.values, (std::vector<float>{9, 8, 9}));
}

TEST_P(Topk, ShapesFromTheEdges) {
  Random random;
  SCOPED_TRACE(seed_text());
  // 32 columns are looked at together and 1024 read at a time
  for (const std::int64_t n : {0, 1, 2, 31, 32, 33, 127, 1023, 1024, 1025, 2053})
    for (const std::int64_t k : {1, 2, 31, 32, 33, 1024})
      for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index}) {
        Array<float, 3> values({1, 3, n});
        random.fill_with_integers(values, -40, 40);  // many ties
        expect_right(values, k, {.order = order});
      }
  for (const std::int64_t n : {1, 17, 1024}) {  // k = n
    Array<float, 3> values({2, 2, n});
    random.fill_with_normals(values);
    expect_right(values, n);
  }
  expect_right(Array<float, 3>({1, 0, 5}), 2);
  expect_right(Array<float, 3>({0, 3, 5}), 2);
  expect_right(Array<float, 3>({1, 0, 0}), 1);
}

TEST_P(Topk, LargeTopKAndLongRows) {
  Random random;
  SCOPED_TRACE(seed_text());
  for (const auto& [n, k] : {std::pair{9000, 2048}, std::pair{2047, 2048}, std::pair{20011, 5000}, std::pair{70001, 20000}}) {
    Array<float, 3> values({1, 2, n});
    random.fill_with_normals(values);
    expect_right(values, k);
    expect_right(values, k, {.order = TopkOrder::by_index, .key_splits = 3});
  }
}

TEST_P(Topk, AdversarialOrders) {
  constexpr std::int64_t n = 6000;
  for (const std::int64_t k : {1, 64, 700}) {
    Array<float, 3> values({1, 5, n});
    Random          random;
    for (std::int64_t j = 0; j < n; ++j) {
      values(0, 0, j) = static_cast<float>(j);         // every entry beats all before it
      values(0, 1, j) = static_cast<float>(-j);        // none does
      values(0, 2, j) = 1.5f;                          // nothing but ties
      values(0, 3, j) = random.integer<float>(-8, 7);  // sixteen values
      values(0, 4, j) = Kokkos::bit_cast<float>(0x7fc00000u + static_cast<std::uint32_t>(j));
    }
    expect_right(values, k);
    expect_right(values, k, {.order = TopkOrder::by_index});
  }
}

// Bounds are found by interpolation between scores, and lists are sorted by their upper bits first: scores for which both say little.
TEST_P(Topk, ScoresSpreadInUnusualWays) {
  constexpr std::int64_t n = 2300;
  Array<float, 3>        values({1, 9, n});
  Random                 random;
  SCOPED_TRACE(seed_text());
  const auto just_above_one = [](std::int64_t units) { return 1.0f + static_cast<float>(units) * 0x1p-23f; };
  for (std::int64_t j = 0; j < n; ++j) {
    values(0, 0, j) = std::ldexp(1.0f, static_cast<int>(j % 250) - 125);  // by the logarithm
    values(0, 1, j) = std::ldexp(j % 2 == 0 ? 1.0f : -1.0f, 120 - static_cast<int>(j % 240));
    values(0, 2, j) = just_above_one(j);                    // neighbours, the best last,
    values(0, 3, j) = j == 700 ? 2.0f : just_above_one(j);  // beside one that is far away
    values(0, 4, j) = j == 700 ? 3e38f : j == 1200 ? -3e38f : just_above_one(j);
    values(0, 5, j) = j == 700 ? infinity : j == 1200 ? -infinity : just_above_one(j);
    values(0, 6, j) = j % 3 == 0 ? 2.0f : just_above_one(random.integer<int>(0, 5));     // ties beside neighbours
    values(0, 7, j) = std::ldexp(static_cast<float>(random.integer<int>(-9, 9)), -149);  // subnormal
    values(0, 8, j) = random.coin() ? 3e38f : random.coin() ? -3e38f : random.integer<float>(-3, 3);
  }
  for (const std::int64_t k : {1, 7, 8, 256, 511, 512, 1000, 1024, 1025, 2000, 2299, 2300})
    for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index}) expect_right(values, k, {.order = order});
}

// A cut may leave k / 8 more than k, and stops being exact: lengths around both, and chunks that cut often.
TEST_P(Topk, LengthsAndChunksAroundACut) {
  Random random;
  SCOPED_TRACE(seed_text());
  for (const std::int64_t k : {1, 7, 8, 64, 1000})
    for (const std::int64_t n : {k - 1, k, k + 1, k + k / 8 - 1, k + k / 8, k + k / 8 + 1, 2 * k + 1, k + 512 + 33, k + 1024 + 33})
      for (const std::int64_t chunk : {0, 32}) {
        Array<float, 3> values({1, 3, n});
        random.fill_with_integers(values, -100, 100);
        for (std::int64_t j = 0; j < n; ++j) values(0, 1, j) = 5.0f;
        for (std::int64_t j = 0; j < n; ++j) values(0, 2, j) = j % 9 == 0 ? 1.0f : nan;
        for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index})
          expect_right(values, k, {.order = order, .chunk_keys = chunk});
      }
}

TEST_P(Topk, SpecialValuesAmongMany) {
  const std::vector<float> special = {nan, -nan, infinity, -infinity, 0.0f, -0.0f, 1e-45f, -1e-45f, 3.4028235e38f, -3.4028235e38f, 1.0f};
  Random                   random;
  SCOPED_TRACE(seed_text());
  Array<float, 3> values({2, 3, 1500});
  for (auto& value : values.values) value = random.any_of(special);
  for (const std::int64_t k : {1, 150, 700, 1499, 1500, 1600}) expect_right(values, k);
}

TEST_P(Topk, StorageTypes) {
  Random random;
  SCOPED_TRACE(seed_text());
  Array<half_t, 3>     halves({2, 2, 2500});
  Array<bfloat16_t, 3> bfloats({2, 2, 2500});
  random.fill_with_normals(halves);
  random.fill_with_normals(bfloats);
  halves(0, 0, 7)   = half_t(nan);
  halves(0, 0, 8)   = half_t(-0.0f);
  bfloats(1, 1, 99) = bfloat16_t(-infinity);
  for (const std::int64_t k : {1, 100, 2500}) {
    expect_right(halves, k);
    expect_right(bfloats, k, {.order = TopkOrder::by_index});
  }
}

TEST_P(Topk, RangesAreClippedAndMayBeEmptyOrReversed) {
  const std::vector<std::array<std::int32_t, 2>> bounds = {{0, 50},          {3, 9},   {-5, 4},  {45, 90},        {7, 7},
                                                           {9, 3},           {50, 50}, {60, 70}, {-9, -2},        {-2147483647, 1},
                                                           {49, 2147483647}, {0, 0},   {1, 0},   {2147483647, -1}};
  const auto                                     rows   = static_cast<std::int64_t>(bounds.size());
  for (const std::int64_t batch : {1, 2}) {
    Array<float, 3>        values({batch, rows, 50});
    Array<std::int32_t, 3> range({batch, rows, 2});
    Random                 random;
    random.fill_with_integers(values, -9, 9);
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t e = 0; e < 2; ++e) range(b, r, e) = bounds[static_cast<std::size_t>((r + b) % rows)][static_cast<std::size_t>(e)];
    for (const TopkOrder order : {TopkOrder::by_score, TopkOrder::by_index}) {
      expect_right(values, 5, {.order = order}, range);
      expect_right(values, 60, {.order = order, .key_splits = 3}, range);
    }
  }
}

TEST_P(Topk, RowsWithoutABatchAndWithoutScores) {
  Array<float, 2>        values({3, 40});
  Array<std::int32_t, 2> range({3, 2});
  Random                 random;
  random.fill_with_integers(values, 0, 5);
  range.values = {0, 40, 5, 21, 39, 12};
  Array<float, 3>        batch({1, 3, 40});
  Array<std::int32_t, 3> batch_range({1, 3, 2});
  batch.values        = values.values;
  batch_range.values  = range.values;
  const Rows expected = expected_topk(batch, 20, TopkOrder::by_score, batch_range);

  const auto                  in       = in_space(values);
  const auto                  range_in = in_space(range);
  const View<std::int32_t, 2> indices("indices", 3, 20);
  const View<float, 2>        scores("scores", 3, 20);
  Tributary::topk(Space{}, in, indices, scores, {.range = range_in, .level = level()});
  EXPECT_EQ(from_space<2>(indices).values, expected.indices.values);
  EXPECT_EQ(from_space<2>(scores).values, expected.scores.values);

  Kokkos::deep_copy(indices, -7);
  Tributary::topk(Space{}, in, indices, std::nullopt, {.range = range_in, .level = level()});
  EXPECT_EQ(from_space<2>(indices).values, expected.indices.values);

  Kokkos::deep_copy(indices, -7);
  Tributary::topk(in, indices, scores, {.range = range_in, .level = level()});  // the default instance
  EXPECT_EQ(from_space<2>(indices).values, expected.indices.values);
}

TEST_P(Topk, StridedViewsTouchOnlyTheirElements) {
  Array<float, 3> all({2, 6, 100});
  Random          random;
  random.fill_with_integers(all, -9, 9);
  Rows       wide(2, 6, 30);
  const auto in = in_space(all), scores = in_space(wide.scores);
  const auto indices = in_space(wide.indices);
  // batch entries 0 and 1, rows 1 to 4, columns 10 to 79; results in columns 5 to 11
  const auto part = [](const auto& view, int first, int last) {
    return Kokkos::subview(view, Kokkos::ALL, Kokkos::pair(1, 5), Kokkos::pair(first, last));
  };
  const auto part_in = part(in, 10, 80);
  static_assert(std::is_same_v<typename decltype(part_in)::array_layout, Kokkos::LayoutStride>);
  Tributary::topk(Space{}, part_in, part(indices, 5, 12), part(scores, 5, 12), {.level = level()});

  Array<float, 3> dense({2, 4, 70});
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t r = 0; r < 4; ++r)
      for (std::int64_t j = 0; j < 70; ++j) dense(b, r, j) = all(b, r + 1, j + 10);
  const Rows chosen = expected_topk(dense, 7);
  Rows       expected(2, 6, 30);
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t r = 0; r < 4; ++r)
      for (std::int64_t i = 0; i < 7; ++i) {
        expected.indices(b, r + 1, i + 5) = chosen.indices(b, r, i);
        expected.scores(b, r + 1, i + 5)  = chosen.scores(b, r, i);
      }
  EXPECT_TRUE(same_bits(from_space<3>(indices), expected.indices));
  EXPECT_TRUE(same_bits(from_space<3>(scores), expected.scores));
}

TEST_P(Topk, RandomShapes) {
  SCOPED_TRACE(seed_text());
  Random                          random(1);
  const std::vector<std::int64_t> lengths = {0, 1, 31, 32, 33, 97, 1023, 1024, 1025, 1537, 4099};
  const std::vector<std::int64_t> counts  = {1, 2, 7, 32, 100, 512, 513, 1024, 3001};
  for (int i = 0; i < 40; ++i) {
    Array<float, 3> values({random.integer(0, 3), random.integer(0, 5), random.any_of(lengths)});
    const Range     range = random.coin() ? Range{} : Array<std::int32_t, 3>({values.extents[0], values.extents[1], 2});
    if (range) random.fill_with_integers(const_cast<Array<std::int32_t, 3>&>(*range), -3, values.extents[2] + 3);
    if (random.coin())
      random.fill_with_normals(values);
    else
      random.fill_with_integers(values, -20, 20);
    expect_right(values, random.any_of(counts),
                 {.order      = random.coin() ? TopkOrder::by_score : TopkOrder::by_index,
                  .chunk_keys = random.integer(0, 2) * random.integer(0, 600),
                  .key_splits = random.integer(0, 9)},
                 range);
  }
}

class TopkCuts : public Topk {};
INSTANTIATE_TEST_SUITE_P(Levels, TopkCuts, testing::ValuesIn(with_hopper(cutting_levels())), level_name);

TEST_P(TopkCuts, NoChunkOrSplitChangesABit) {
  Array<float, 3> values({1, 2, 3000});
  Random          random;
  random.fill_with_integers(values, -100, 100);
  for (std::int64_t j = 0; j < 3000; j += 7) values(0, 1, j) = nan;
  for (const std::int64_t k : {1, 50, 1300})
    for (const std::int64_t chunk : {0, 1, 32, 33, 1000, 5000})
      for (const std::int64_t splits : {0, 1, 2, 3, 16, 3001}) expect_right(values, k, {.chunk_keys = chunk, .key_splits = splits});
}

}  // namespace
}  // namespace TributaryTest
