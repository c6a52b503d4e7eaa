#pragma once
#include <optional>

#include "ExpectedTopk.hpp"

// Calls of topk and topk_merge on host arrays, and what they should give.

namespace TributaryTest {

using Tributary::TopkMergeOptions;
using Tributary::TopkOptions;

/// What the Hopper level chooses at most.
inline constexpr std::int64_t hopper_top_k = 2048;

class TopkLevelTest : public LevelTest {
 protected:
  void SetUp() override {
    if (needs_another_device(level())) GTEST_SKIP() << "needs compute capability 9.0";
  }
};

/// Columns [begin, end) of each row that take part; not given: all.
using Range = std::optional<Array<std::int32_t, 3>>;

template <class Value>
Rows topk_of(Level level, const Array<Value, 3>& values, std::int64_t top_k, TopkOptions options = {}, const Range& range = {}) {
  Rows                                 rows(values.extents[0], values.extents[1], top_k);
  const auto                           in      = in_space(values);
  const auto                           indices = in_space(rows.indices);
  const auto                           scores  = in_space(rows.scores);
  std::optional<View<std::int32_t, 3>> columns;
  if (range) options.range = columns.emplace(in_space(*range));
  options.level = level;
  Tributary::topk(Space{}, in, indices, scores, options);
  rows.indices = from_space<3>(indices);
  rows.scores  = from_space<3>(scores);
  return rows;
}

template <class Value>
Rows expected_topk(const Array<Value, 3>& values, std::int64_t top_k, TopkOrder order = TopkOrder::by_score, const Range& range = {}) {
  Rows rows(values.extents[0], values.extents[1], top_k);
  for (std::int64_t b = 0; b < values.extents[0]; ++b)
    for (std::int64_t r = 0; r < values.extents[1]; ++r) {
      std::vector<ScoredIndex> entries;
      for (std::int32_t j = 0; j < values.extents[2]; ++j)
        if (!range || ((*range)(b, r, 0) <= j && j < (*range)(b, r, 1))) entries.push_back({static_cast<float>(values(b, r, j)), j});
      expect_row(rows, b, r, entries, order);
    }
  return rows;
}

/// One batch of one row.
template <class Value>
Array<Value, 3> one_row(const std::vector<Value>& values) {
  Array<Value, 3> array({1, 1, static_cast<std::int64_t>(values.size())});
  array.values = values;
  return array;
}

/// A partial list on the host.
struct List {
  Rows         entries;
  std::int32_t index_offset = 0;
};

inline Rows merge_of(Level level, const std::vector<List>& lists, std::int64_t top_k, TopkMergeOptions options = {}) {
  Rows                               rows(lists.at(0).entries.indices.extents[0], lists.at(0).entries.indices.extents[1], top_k);
  std::vector<View<std::int32_t, 3>> indices_in;
  std::vector<View<float, 3>>        scores_in;
  std::vector<Tributary::TopkList>   in;
  for (const List& list : lists) {
    indices_in.push_back(in_space(list.entries.indices));
    scores_in.push_back(in_space(list.entries.scores));
    in.push_back({.indices = indices_in.back(), .scores = scores_in.back(), .index_offset = list.index_offset});
  }
  const auto indices = in_space(rows.indices);
  const auto scores  = in_space(rows.scores);
  options.level      = level;
  Tributary::topk_merge(Space{}, in, indices, scores, options);
  rows.indices = from_space<3>(indices);
  rows.scores  = from_space<3>(scores);
  return rows;
}

inline Rows expected_merge(const std::vector<List>& lists, std::int64_t top_k, TopkOrder order = TopkOrder::by_score) {
  const auto& extents = lists.at(0).entries.indices.extents;
  Rows        rows(extents[0], extents[1], top_k);
  for (std::int64_t b = 0; b < extents[0]; ++b)
    for (std::int64_t r = 0; r < extents[1]; ++r) {
      std::vector<ScoredIndex> entries;
      for (const auto& [list, offset] : lists)
        for (std::int64_t i = 0; i < list.indices.extents[2]; ++i) {
          const std::int64_t moved = std::int64_t{list.indices(b, r, i)} + offset;
          if (list.indices(b, r, i) >= 0 && moved >= 0 && moved <= std::numeric_limits<std::int32_t>::max())
            entries.push_back({list.scores(b, r, i), static_cast<std::int32_t>(moved)});
        }
      expect_row(rows, b, r, entries, order);
    }
  return rows;
}

}  // namespace TributaryTest
