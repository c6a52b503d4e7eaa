#pragma once
#include <cuda.h>

#include <cstdint>

#include "sm90/attention/tile.cuh"

// Sizes of the forward kernel for head dimensions beyond 256, the pieces of its work, and what a team's warps share.

namespace Tributary::Impl::SM90 {

/// Rows of a tile: some heads of a group, which share a key head, of some queries that follow one another; heads run fastest.
struct GroupedPiece : AttentionPiece {
  std::int32_t heads, pitch;  // heads of a query that are rows; rows from query to query
  std::int32_t first_seen;    // where its first tile of keys begins: the first key of the sequence that a row sees

  /// A row that does not exist belongs to the piece's last head, and to its last query or one behind it.
  __device__ std::int32_t query_of(std::int32_t row) const { return row / pitch; }
  __device__ std::int32_t head_of(std::int32_t row) const { return head + min(row % pitch, heads - 1); }
  __device__ bool         has(std::int32_t row) const { return row / pitch < rows && row % pitch < heads; }
  __device__ QueryPlace   place(std::int32_t row) const {
      const std::int32_t query = query_of(row);
      return {batch, sequence, this->row + query, first_query + query, position + query, head_of(row)};
  }
};

/// A team's shared memory holds a tile of queries and two stages of keys and values.  Where values are the keys themselves, a tile of them
/// is loaded once and the stages take turns; otherwise keys have the first stage and values the second one.
template <class Element_, Scores TheScores>
struct WideTile {
  using Element                  = Element_;
  using Piece                    = GroupedPiece;
  static constexpr bool   e4m3   = false;
  static constexpr Scores scores = TheScores;

  static constexpr int dim = 512;  // of keys and values; what is missing comes as zeros
  // Sums of 64 x 256 values take 128 registers of each of two warpgroups, scores of 64 x 64 another 32 of the first one.
  static constexpr int rows = 64, keys = 64;  // a row is one head of one query
  static constexpr int halves = 2, columns = dim / halves;

  static constexpr int group_warps = 4, math_warps = 2 * group_warps, team_threads = 384;
  static constexpr int math_registers = 232, other_registers = 40;

  static constexpr int panels      = columns / panel_columns;  // of a half
  static constexpr int panel_bytes = 64 * panel_row_bytes;     // of queries as of keys
  static constexpr int half_bytes = panels * panel_bytes, tile_bytes = halves * half_bytes;
  static constexpr int stages = 2, handovers = 2, pieces = 3;

  static constexpr int stages_offset   = tile_bytes;  // behind the queries
  static constexpr int handover_offset = stages_offset + stages * tile_bytes;
};

/// Where the tiles of keys, or of values, of one stream come by.
struct WideStages {
  bool          both;  // or this one only
  int           stage;
  std::uint32_t round = 0;

  __device__ void next() {
    if (both) stage ^= 1;
    if (!both || stage == 0) round ^= 1;
  }
};

/// What the first warpgroup's threads tell their counterparts in the second one, which have the same rows: the weights of a tile, or at the
/// end of a piece the factors of the rows.
struct WideHandover {
  uint4               weights[4][128];
  float2              rescale[128];
  AttentionRowFactors factors[2][128];
};

template <class Tile>
struct WideShared {
  WideHandover  handovers[Tile::handovers];
  std::uint64_t query_full, query_empty;
  std::uint64_t full[Tile::stages][Tile::halves], clean[Tile::stages][Tile::halves], empty[Tile::stages][Tile::halves];
  std::uint64_t handover_full[Tile::handovers], handover_empty[Tile::handovers];
  std::uint64_t piece_full[Tile::pieces], piece_empty[Tile::pieces];
  GroupedPiece  pieces[Tile::pieces];
};

template <class Tile>
inline constexpr int wide_scratch_bytes = Tile::handover_offset + static_cast<int>(sizeof(WideShared<Tile>));

/// Whether a row of values is the beginning of its row of keys.
KOKKOS_INLINE_FUNCTION bool values_are_keys(const AttentionProblem& p) {
  if (p.value != p.key || p.value_dim > p.head_dim) return false;
  const std::int64_t extents[3] = {p.batch, p.keys, p.key_heads};
  for (int d = 0; d < 3; ++d)
    if (extents[d] > 1 && p.value_strides[d] != p.key_strides[d]) return false;
  return true;
}

}  // namespace Tributary::Impl::SM90
