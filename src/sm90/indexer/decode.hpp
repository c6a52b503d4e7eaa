#pragma once
#include <Kokkos_Core.hpp>
#include <algorithm>
#include <cstdint>

#include "common/workers.hpp"
#include "indexer/indexer.hpp"

// indexer_topk for few queries against many keys, as the dispatch sees it.  Templates, so that the dispatch compiles where there is no
// CUDA; they exist for Kokkos::Cuda.

namespace Tributary::Impl::SM90 {

/// How a call is cut, and its part of the workspace.  A tile of queries goes to `splits` teams, which share its key tiles out among
/// themselves as they go.
struct DecodePlan {
  std::int32_t columns;    // query heads that a warpgroup multiplies at once: 64 or 128
  std::int32_t groups;     // of so many columns, in a tile of queries: 1, 2 or 4
  std::int32_t tile_rows;  // queries of a tile
  std::int64_t tiles;      // of queries, in each batch entry
  std::int32_t splits;
  std::int32_t keep;
  std::int32_t places;                        // a team has in a row's list, a power of two; the first says how many are taken
  std::int32_t list_capacity, pool_capacity;  // of a row's candidates beyond these, and in shared memory
  std::int32_t counted_eighths;               // of the key tiles: those whose scores are counted
  std::int64_t score_row;                     // floats from one row of stored scores to the next

  void* maps;  // for the copy engine

  float* scores;  // [batch][queries][score_row]: of the row's legal keys, in their places in the hull of the tile's

  // [batch][tiles][tile_rows]
  Entry* lists;       // [...][splits][places]
  Entry* candidates;  // [...][list_capacity]
  // Zero before the kernel starts:
  std::uint32_t* zeros;
  std::int64_t   zero_count;
  std::uint32_t* histogram;                  // [...][bins]: of the scores of the first key tiles
  std::uint32_t* listed;                     // [...]: candidates that their teams had no place for, also those beyond the list's capacity
  std::uint32_t* owner;                      // [...]: what has become of the team that is to select the row
  std::int32_t * next, *counted, *finished;  // [batch][tiles]: key tiles that are taken; teams whose scores are counted; that have ended

  std::int64_t rows(std::int64_t batch) const { return batch * tiles * tile_rows; }
};

/// Keys of a tile; tiles that a team has room for, and that every team surely takes before it asks for no more.
inline constexpr int decode_tile_keys = 64, most_decode_tiles = 1024, sure_decode_tiles = most_decode_tiles - 8;

/// What the scores of a call may take of the workspace: little enough that they are still in the second-level cache (50 MB) when they are
/// read again.
inline constexpr std::int64_t most_score_bytes = 32 << 20;

/// Candidates of a row, beyond the teams' own places, that a list can hold.
inline constexpr int most_decode_candidates = 6144;

/// The cut of a call, without its workspace.
template <class Exec>
DecodePlan shape_decode(const Exec& exec, const IndexerProblem& problem) {
  DecodePlan         plan{};
  const std::int64_t heads = problem.heads * std::max<std::int64_t>(1, problem.queries);
  // e4m3 of two queries: two warpgroups a tile, which finish its scores sooner than one.
  plan.columns                  = heads <= 64 || (heads <= 128 && problem.type == ElementType::float8_e4m3) ? 64 : 128;
  plan.groups                   = heads <= plan.columns ? 1 : heads <= 2 * plan.columns ? 2 : 4;
  plan.tile_rows                = plan.groups * plan.columns / problem.heads;
  plan.tiles                    = (problem.queries + plan.tile_rows - 1) / plan.tile_rows;
  plan.score_row                = (problem.keys + 3) / 4 * 4;
  const std::int64_t processors = exec.cuda_device_prop().multiProcessorCount;
  plan.splits = static_cast<std::int32_t>(std::max<std::int64_t>(1, processors / std::max<std::int64_t>(1, problem.batch * plan.tiles)));
  return plan;
}

/// Whether a call is one of few queries; else its keys are selected by the fused kernel.
///
/// Where tiles of queries fill half of the chip the fused kernel is faster.
///
/// \param key_splits  of the options: a call that names a number of parts gets the fused kernel in these
template <class Exec>
bool has_few_queries(const Exec& exec, const IndexerProblem& problem, std::int64_t key_splits) {
  const DecodePlan plan = shape_decode(exec, problem);
  return key_splits == 0 && problem.batch * plan.tiles <= exec.cuda_device_prop().multiProcessorCount / 2 &&
         problem.batch * problem.queries * 4 * plan.score_row <= most_score_bytes &&
         problem.keys <= std::int64_t{decode_tile_keys} * sure_decode_tiles * plan.splits;
}

template <class Exec>
DecodePlan plan_decode(const Exec& exec, const IndexerProblem& problem, std::int64_t top_k, WorkspaceLayout& layout);

template <class Exec>
void decode_topk(const Exec& exec, const IndexerProblem& problem, const DecodePlan& plan, const TopkOutput& output);

}  // namespace Tributary::Impl::SM90
