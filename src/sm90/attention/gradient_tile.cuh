#pragma once
#include <cuda.h>

#include <cstdint>

#include "sm90/attention/attention.hpp"
#include "sm90/attention/tensors.cuh"
#include "sm90/launch.cuh"
#include "sm90/pipeline.cuh"

// Sizes of the kernel of attention's gradients, its parameters, and what a team's warps share.

namespace Tributary::Impl::SM90 {

template <class Element_, int Dim, Scores TheScores>
struct GradientTile {
  using Element                  = Element_;
  static constexpr Scores scores = TheScores;

  static constexpr int dim    = Dim;  // of heads and values, rounded up: what is missing comes as zeros
  static constexpr int panels = Dim / panel_columns;
  static constexpr int keys   = gradient_keys;  // two warpgroups with 64 each: wgmma's M
  static constexpr int queries =
      gradient_queries;  // a step: the products of 64 x 64 pairs, twice, beside 64 x (dim + dim) sums of gradients

  static constexpr int groups = 2, math_warps = 4 * groups, team_threads = 128 * (groups + 1);
  static constexpr int math_registers = Dim == 128 ? 240 : 216, other_registers = Dim == 128 ? 24 : 72;

  static constexpr int key_panel_bytes = keys * panel_row_bytes, query_panel_bytes = queries * panel_row_bytes;
  static constexpr int key_bytes = panels * key_panel_bytes, query_bytes = panels * query_panel_bytes;
  static constexpr int stages      = 2;                       // of queries and gradients of outputs; of gradients of scores
  static constexpr int score_bytes = keys * panel_row_bytes;  // a row a key, a column a query

  static constexpr int keys_offset     = 0;
  static constexpr int values_offset   = keys_offset + key_bytes;
  static constexpr int queries_offset  = values_offset + key_bytes;
  static constexpr int grad_out_offset = queries_offset + stages * query_bytes;
  static constexpr int scores_offset   = grad_out_offset + stages * query_bytes;
  static constexpr int sums_offset     = scores_offset + stages * score_bytes;  // a panel of a gradient of queries in each slot
  static constexpr int state_offset    = sums_offset + groups * gradient_panel_floats * 4;
  static constexpr int state_bytes     = 2048;
  static constexpr int scratch_bytes   = state_offset + state_bytes;
  static_assert(scratch_bytes + scratch_alignment <= largest_scratch(team_threads / 32));

  /// Whether a warpgroup multiplies a panel of the gradient of a step's queries: each has its own panel, or they take turns at the only
  /// one.  What it makes goes through its own slot.
  KOKKOS_INLINE_FUNCTION static bool has_panel(int group, std::int32_t step) { return panels == groups || step % groups == group; }
};

struct GradientMaps {
  CUtensorMap query, key, value, grad_out;
};

/// One launch of the kernel.
struct AttentionBackwardCall {
  AttentionProblem      problem;
  BucketTable           buckets;
  RowStatistics         statistics;
  AttentionBackwardPlan plan;
  GradientOutput        grad_key, grad_value;

  __device__ const GradientMaps* maps() const { return static_cast<const GradientMaps*>(plan.maps); }
  __device__ std::int64_t items() const { return problem.batch * problem.key_heads * plan.blocks; }
};

/// Keys of one head in one sequence, at most a tile's, and the tiles of queries that see them: all of these of one query head, then of
/// the next one.
struct GradientPiece {
  std::int32_t batch;  // -1: there is no more work
  std::int32_t key_head;
  std::int32_t key_row, keys;        // of the tensors
  std::int32_t sequence, first_key;  // key_row's number in it
  std::int32_t sequence_keys, sequence_queries;
  std::int32_t alignment;               // i' - i
  std::int32_t query_row;               // of the tensors: the sequence's first
  std::int32_t query_tiles, last_tile;  // visited downwards, from this tile of the sequence on
};

/// A tile of queries of one head.
struct GradientStep {
  std::int32_t head, first_query;  // number in the sequence
  std::int64_t position;           // i' of that query

  __device__ GradientStep(const AttentionProblem& p, const GradientPiece& piece, std::int32_t number)
      : head(piece.key_head * (p.heads / p.key_heads) + number / piece.query_tiles),
        first_query((piece.last_tile - number % piece.query_tiles) * gradient_queries),
        position(std::int64_t{first_query} + piece.alignment) {}
};

__device__ inline std::int32_t steps_of(const AttentionProblem& p, const GradientPiece& piece) {
  return p.heads / p.key_heads * piece.query_tiles;
}

template <class Tile>
struct GradientShared {
  std::uint64_t keys_full, keys_clean, keys_empty;
  std::uint64_t queries_full[Tile::stages], queries_clean[Tile::stages], queries_empty[Tile::stages];
  std::uint64_t scores_full[Tile::stages], scores_empty[Tile::stages];
  std::uint64_t sums_full[Tile::groups], sums_empty[Tile::groups];
  std::uint64_t piece_full[2], piece_empty[2];
  GradientPiece pieces[2];
  float         lse[Tile::stages][Tile::queries], shift[Tile::stages][Tile::queries], share[Tile::stages][Tile::queries];
};

}  // namespace Tributary::Impl::SM90
