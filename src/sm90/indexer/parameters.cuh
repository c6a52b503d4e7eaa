#pragma once
#include <cuda.h>

#include "sm90/indexer/indexer.hpp"
#include "sm90/indexer/select.cuh"

namespace Tributary::Impl::SM90 {

struct TensorMaps {
  CUtensorMap query, key;
};

/// One launch of the kernel.
struct IndexerCall {
  IndexerProblem problem;
  IndexerPlan    plan;
  TopkOutput     output;    // with more than one split: not written
  Entry*         partials;  // with more than one split
  std::int64_t   keep;      // entries of a partial list
  float*         scores;    // where they go; null: the candidates are collected instead
  std::int64_t   score_strides[2], score_columns;

  __device__ const TensorMaps* maps() const { return static_cast<const TensorMaps*>(plan.maps); }
};

/// Candidates of a row of a team's tile.
template <class Tile>
__device__ Candidate* buffer(const IndexerCall& call, int team, int row) {
  return call.plan.candidates + static_cast<std::int64_t>(team * Tile::queries + row) * call.plan.capacity;
}

}  // namespace Tributary::Impl::SM90
