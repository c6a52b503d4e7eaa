#include <numeric>

#include "topk/TopkCase.hpp"

namespace TributaryTest {
namespace {

class TopkMerge : public TopkLevelTest {
 public:
  static void expect_right(const std::vector<List>& lists, std::int64_t top_k, TopkOrder order = TopkOrder::by_score) {
    EXPECT_TRUE(same_rows(merge_of(level(), lists, top_k, {.order = order}), expected_merge(lists, top_k, order)))
        << lists.size() << " lists, k " << top_k << (order == TopkOrder::by_index ? ", by_index" : "");
  }

  /// Lists of the given lengths whose indices are disjoint and in no order, a tenth of them -1, scores with ties, NaN and zeros.
  static std::vector<List> random_lists(Random& random, std::int64_t batch, std::int64_t rows, const std::vector<std::int64_t>& lengths) {
    std::vector<List> lists;
    std::int64_t      columns = 0;
    for (const auto length : lengths) {
      lists.push_back({Rows(batch, rows, length)});
      columns += length;
    }
    std::vector<std::int32_t> indices(static_cast<std::size_t>(columns));
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t r = 0; r < rows; ++r) {
        std::iota(indices.begin(), indices.end(), 0);
        for (std::size_t i = indices.size(); i > 1; --i)
          std::swap(indices[i - 1], indices[random.integer<std::size_t>(0, static_cast<std::int64_t>(i) - 1)]);
        std::size_t next = 0;
        for (auto& [entries, offset] : lists)
          for (std::int64_t i = 0; i < entries.indices.extents[2]; ++i) {
            const auto kind          = random.integer(0, 19);
            entries.indices(b, r, i) = kind < 2 ? -1 : indices[next];
            entries.scores(b, r, i)  = kind == 2 ? nan : kind == 3 ? -0.0f : kind == 4 ? -infinity : random.integer<float>(-30, 30);
            ++next;
          }
      }
    return lists;
  }
};
INSTANTIATE_TEST_SUITE_P(Levels, TopkMerge, testing::ValuesIn(with_hopper(all_levels())), level_name);

List list(std::vector<std::int32_t> indices, std::vector<float> scores, std::int32_t index_offset = 0) {
  List result{Rows(1, 1, static_cast<std::int64_t>(indices.size())), index_offset};
  result.entries.indices.values = std::move(indices);
  result.entries.scores.values  = std::move(scores);
  return result;
}

TEST_P(TopkMerge, JoinsTwoListsInTheOrderOfTopk) {
  const auto rows = merge_of(level(), {list({4, 1, -1}, {2, 5, 99}), list({0, 7, 3}, {5, nan, 1})}, 6);
  EXPECT_EQ(rows.indices.values, (std::vector<std::int32_t>{0, 1, 4, 3, 7, -1}));
  EXPECT_EQ(bits_of(rows.scores.values[4]), 0x7fc00000u);
  EXPECT_EQ(rows.scores.values[5], -infinity);
}

TEST_P(TopkMerge, AddsEachListsOffset) {
  const auto rows = merge_of(level(), {list({0, 1}, {1, 1}, 10), list({0, 1}, {1, 2}, 4)}, 4);
  EXPECT_EQ(rows.indices.values, (std::vector<std::int32_t>{5, 4, 10, 11}));
}

TEST_P(TopkMerge, AnIndexThatItsOffsetMovesOutOfInt32IsNoEntry) {
  const std::int32_t largest = std::numeric_limits<std::int32_t>::max();
  const auto         rows = merge_of(level(), {list({0, 1, 2}, {1, 2, 3}, largest - 1), list({5, 3}, {9, 8}, -4), list({-1}, {7}, 5)}, 5);
  EXPECT_EQ(rows.indices.values, (std::vector<std::int32_t>{1, largest, largest - 1, -1, -1}));
}

TEST_P(TopkMerge, AnInfinitelyLowEntryIsNotPadding) {
  const auto rows = merge_of(level(), {list({-1, 6}, {-infinity, -infinity})}, 2);
  EXPECT_EQ(rows.indices.values, (std::vector<std::int32_t>{6, -1}));
}

TEST_P(TopkMerge, AnyNumberAndLengthOfLists) {
  SCOPED_TRACE(seed_text());
  Random random;
  for (const auto& lengths : std::vector<std::vector<std::int64_t>>{{1},
                                                                    {0},
                                                                    {2000},
                                                                    {33, 1},
                                                                    {0, 40},
                                                                    {1023, 1025},
                                                                    {10, 0, 31, 2, 1100},
                                                                    {7, 7, 7, 7},
                                                                    {3, 900, 64, 64, 0, 1, 17, 33, 250},
                                                                    {0, 0, 0, 0, 0, 0}})
    for (const std::int64_t top_k : {1, 32, 700}) {
      const auto lists = random_lists(random, 2, 3, lengths);
      expect_right(lists, top_k);
      expect_right(lists, top_k, TopkOrder::by_index);
    }
  expect_right(random_lists(random, 1, 0, {4, 5}), 3);
}

TEST_P(TopkMerge, EqualsTopkOfTheUnion) {
  SCOPED_TRACE(seed_text());
  Random          random(2);
  Array<float, 3> values({2, 4, 1000});
  random.fill_with_integers(values, -50, 50);
  values(1, 2, 999) = nan;
  for (const std::int64_t top_k : {1, 40, 600})
    for (const TopkOrder part_order : {TopkOrder::by_score, TopkOrder::by_index}) {
      std::vector<List> lists;
      for (std::int64_t begin = 0; begin < 1000;) {
        const std::int64_t end = std::min<std::int64_t>(1000, begin + random.integer(1, 400));
        Array<float, 3>    part({2, 4, end - begin});
        for (std::int64_t b = 0; b < 2; ++b)
          for (std::int64_t r = 0; r < 4; ++r)
            for (std::int64_t j = begin; j < end; ++j) part(b, r, j - begin) = values(b, r, j);
        lists.push_back({topk_of(level(), part, top_k, {.order = part_order}), static_cast<std::int32_t>(begin)});
        begin = end;
      }
      EXPECT_TRUE(same_rows(merge_of(level(), lists, top_k), expected_topk(values, top_k)));
    }
}

TEST_P(TopkMerge, IsAssociativeAndCommutative) {
  SCOPED_TRACE(seed_text());
  Random random(3);
  for (const std::int64_t k : {1, 20, 300}) {
    const auto lists = random_lists(random, 1, 4, {100, 37, 0, 256, 19});
    const auto merge = [&](std::vector<List> some) { return List{merge_of(level(), some, k)}; };
    const auto all   = merge(lists).entries;
    EXPECT_TRUE(same_rows(all, expected_merge(lists, k)));
    EXPECT_TRUE(same_rows(merge({lists[4], lists[2], lists[0], lists[3], lists[1]}).entries, all));
    EXPECT_TRUE(same_rows(merge({merge({merge({merge({lists[0], lists[1]}), lists[2]}), lists[3]}), lists[4]}).entries, all));
    EXPECT_TRUE(same_rows(merge({lists[0], merge({lists[1], merge({lists[2], merge({lists[3], lists[4]})})})}).entries, all));
    EXPECT_TRUE(same_rows(merge({merge({lists[3], lists[1]}), merge({lists[4], lists[0], lists[2]})}).entries, all));
  }
}

TEST_P(TopkMerge, TheOutputMayBeOneOfTheLists) {
  SCOPED_TRACE(seed_text());
  Random random(4);
  for (const std::vector<std::int64_t>& lengths : {std::vector<std::int64_t>{50, 80}, {50, 9, 9, 9, 9, 200}})
    for (const std::size_t place : {std::size_t{0}, lengths.size() - 1}) {
      auto lists = random_lists(random, 2, 5, lengths);
      std::swap(lists[0], lists[place]);  // the list of 50 entries is accumulated into
      std::vector<View<std::int32_t, 3>> indices;
      std::vector<View<float, 3>>        scores;
      std::vector<Tributary::TopkList>   in;
      for (const List& list : lists) {
        indices.push_back(in_space(list.entries.indices));
        scores.push_back(in_space(list.entries.scores));
        in.push_back({.indices = indices.back(), .scores = scores.back()});
      }
      Tributary::topk_merge(Space{}, in, indices[place], scores[place], {.level = level()});
      const Rows expected = expected_merge(lists, 50);
      EXPECT_TRUE(same_bits(from_space<3>(indices[place]), expected.indices));
      EXPECT_TRUE(same_bits(from_space<3>(scores[place]), expected.scores));
    }
}

TEST_P(TopkMerge, RowsWithoutABatchStridedAndWithoutScores) {
  // two lists side by side in one array of [rows, 2, 3], as a kernel with splits would leave them
  Array<std::int32_t, 3> indices({2, 2, 3});
  Array<float, 3>        scores({2, 2, 3});
  indices.values                              = {0, 1, 2, 5, 4, 3, 2, 1, 0, 3, -1, 5};
  scores.values                               = {6, 5, 4, 9, 5, 0, 1, 1, 1, 1, 9, 1};
  const auto                       indices_in = in_space(indices);
  const auto                       scores_in  = in_space(scores);
  std::vector<Tributary::TopkList> lists;
  for (int side = 0; side < 2; ++side)
    lists.push_back({.indices = Kokkos::subview(indices_in, Kokkos::ALL, side, Kokkos::ALL),
                     .scores  = Kokkos::subview(scores_in, Kokkos::ALL, side, Kokkos::ALL)});
  const View<std::int32_t, 2> out("indices", 2, 4);
  Tributary::topk_merge(Space{}, lists, out, std::nullopt, {.level = level()});
  EXPECT_EQ(from_space<2>(out).values, (std::vector<std::int32_t>{5, 0, 1, 4, 0, 1, 2, 3}));
  const View<float, 2> scores_out("scores", 2, 4);
  Kokkos::deep_copy(out, -7);
  Tributary::topk_merge(lists, out, scores_out, {.level = level()});  // the default instance
  EXPECT_EQ(from_space<2>(out).values, (std::vector<std::int32_t>{5, 0, 1, 4, 0, 1, 2, 3}));
  EXPECT_EQ(from_space<2>(scores_out).values, (std::vector<float>{9, 6, 5, 5, 1, 1, 1, 1}));
}

}  // namespace
}  // namespace TributaryTest
