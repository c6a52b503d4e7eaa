#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <string>

#include "common/workers.hpp"
#include "indexer/indexer.hpp"

// The Hopper level of indexer_score and indexer_topk, as the dispatch sees it.  Templates, so that the dispatch compiles where there is no
// CUDA; they exist for Kokkos::Cuda.

namespace Tributary::Impl::SM90 {

/// Why the level cannot take a call; empty if it can.  top_k is 0 for indexer_score.
template <class Exec>
std::string no_indexer(const Exec& exec, const IndexerProblem& problem, std::int64_t top_k);

/// How a call is cut, and its part of the workspace.
struct IndexerPlan {
  std::int64_t   tiles;   // of queries, in each batch entry
  std::int32_t   splits;  // parts of a tile's keys, each a work item
  std::int32_t   teams;
  std::int32_t   capacity;    // entries of a row's buffer
  void*          maps;        // of queries and keys, for the copy engine
  std::int32_t*  next_item;   // the queue of work items
  std::uint64_t* candidates;  // [teams][queries of a tile][capacity], as select.cuh makes them

  KOKKOS_INLINE_FUNCTION std::int64_t items(std::int64_t batch) const { return batch * tiles * splits; }
};

/// Keys of a tile, and queries: two warpgroups have 256 heads each.
inline constexpr int tile_keys = 64;
inline std::int64_t  tile_queries(const IndexerProblem& problem) { return 512 / problem.heads; }

/// Tiles of queries of a batch entry.
inline std::int64_t query_tiles(const IndexerProblem& problem) {
  return (problem.queries + tile_queries(problem) - 1) / tile_queries(problem);
}

/// \param top_k       0: for indexer_score
/// \param key_splits  0: chosen here
template <class Exec>
IndexerPlan plan_indexer(const Exec& exec, const IndexerProblem& problem, std::int64_t top_k, std::int64_t key_splits,
                         WorkspaceLayout& layout);

/// With more than one split each leaves `keep` entries a row in partials, [batch][queries][splits][keep], padded with no_entry.
template <class Exec>
void indexer_topk(const Exec& exec, const IndexerProblem& problem, const IndexerPlan& plan, const TopkOutput& output, Entry* partials,
                  std::int64_t keep);

template <class Exec>
void indexer_score(const Exec& exec, const IndexerProblem& problem, const IndexerPlan& plan, const Tensor<float, 3>& scores);

}  // namespace Tributary::Impl::SM90
