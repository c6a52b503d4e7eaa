#pragma once
#include <cstdint>

#include "indexer/indexer.hpp"

// The keys of a row of queries.

namespace Tributary::Impl::SM90 {

/// Keys of one row, as rows of the key tensor; an index is relative to first_key.
struct RowKeys {
  std::int32_t begin, end, first_key;
};

/// The legal keys of query row `row` of a batch entry; none past the last row.
__device__ inline RowKeys row_keys(const IndexerProblem& problem, std::int64_t batch, std::int64_t row) {
  if (row >= problem.queries) return {0, 0, 0};
  const Segment     segment = problem.segment(batch, row, row + 1);
  const KeyInterval legal   = problem.legal_keys(segment, 0);
  return {static_cast<std::int32_t>(segment.first_key + legal.begin), static_cast<std::int32_t>(segment.first_key + legal.end),
          static_cast<std::int32_t>(segment.first_key)};
}

}  // namespace Tributary::Impl::SM90
