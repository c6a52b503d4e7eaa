#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "Support.hpp"

// The order of top-k, stated once for the tests: a stable sort of entries in index order.

namespace TributaryTest {

using Tributary::TopkOrder;

inline constexpr float infinity = std::numeric_limits<float>::infinity();
inline constexpr float nan      = std::numeric_limits<float>::quiet_NaN();

struct ScoredIndex {
  float        score;
  std::int32_t index;
};

/// What a top-k operator returns.
struct Rows {
  Array<std::int32_t, 3> indices;
  Array<float, 3>        scores;

  Rows() = default;
  Rows(std::int64_t batch, std::int64_t rows, std::int64_t top_k) : indices({batch, rows, top_k}, -7), scores({batch, rows, top_k}, 7.0f) {}
};

inline testing::AssertionResult same_rows(const Rows& given, const Rows& expected) {
  if (auto indices = same_bits(given.indices, expected.indices); !indices) return indices << " (indices)";
  if (auto scores = same_bits(given.scores, expected.scores); !scores) return scores << " (scores)";
  return testing::AssertionSuccess();
}

/// Higher scores first, NaN below -infinity; -0 is equal to +0.
inline bool ranks_higher(const ScoredIndex& a, const ScoredIndex& b) {
  if (std::isnan(a.score)) return false;
  return std::isnan(b.score) || a.score > b.score;
}

inline bool by_index(const ScoredIndex& a, const ScoredIndex& b) { return a.index < b.index; }

inline void expect_row(Rows& rows, std::int64_t batch, std::int64_t row, std::vector<ScoredIndex> entries,
                       TopkOrder order = TopkOrder::by_score) {
  const auto top_k = static_cast<std::size_t>(rows.indices.extents[2]);
  std::stable_sort(entries.begin(), entries.end(), by_index);
  std::stable_sort(entries.begin(), entries.end(), ranks_higher);
  if (entries.size() > top_k) entries.resize(top_k);
  if (order == TopkOrder::by_index) std::stable_sort(entries.begin(), entries.end(), by_index);
  for (std::size_t i = 0; i < top_k; ++i) {
    rows.indices(batch, row, i) = -1;
    rows.scores(batch, row, i)  = -infinity;
    if (i >= entries.size()) continue;
    const float score           = entries[i].score;
    rows.indices(batch, row, i) = entries[i].index;
    rows.scores(batch, row, i)  = std::isnan(score) ? Kokkos::bit_cast<float>(0x7fc00000u) : (score == 0.0f ? 0.0f : score);
  }
}

}  // namespace TributaryTest
