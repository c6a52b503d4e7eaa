#pragma once
#include <cuda.h>

#include <cstdint>

#include "sm90/attention/attention.hpp"
#include "sm90/attention/tensors.cuh"
#include "sm90/launch.cuh"
#include "sm90/pipeline.cuh"

// Sizes of the attention kernels, their parameters, and what a team's warps share.

namespace Tributary::Impl::SM90 {

/// Query rows of one head in one sequence, at most a tile's, and the key tiles that they see.
struct AttentionPiece {
  std::int32_t batch;  // -1: there is no more work
  std::int32_t head, key_head;
  std::int32_t row, rows;               // of the tensors
  std::int32_t sequence, first_query;   // row's number in it
  std::int32_t position;                // i' of the first row
  std::int32_t first_key, keys;         // of the sequence: row of the tensors, number
  std::int32_t key_tiles, last_tile;    // visited downwards, from this tile of the sequence on (of e4m3 see keys_before)
  std::int32_t clear_begin, clear_end;  // of e4m3: keys between them are in the windows of all rows

  // A row of a tile is a query of the piece.
  __device__ std::int32_t query_of(std::int32_t row) const { return row; }
  __device__ std::int32_t head_of(std::int32_t) const { return head; }
  __device__ bool         has(std::int32_t row) const { return row < rows; }
  __device__ QueryPlace   place(std::int32_t row) const {
      return {batch, sequence, this->row + row, first_query + row, position + row, head};
  }
};

/// Whether a key of the piece's sequence is one, and is not hidden by key_keep.
__device__ inline bool takes_part(const AttentionProblem& p, const AttentionPiece& piece, std::int32_t key) {
  return key < piece.keys && (p.key_keep == nullptr || p.key_keep[piece.batch * p.key_keep_stride + piece.first_key + key] != 0);
}

/// Keys of a tile of a 2-byte type: a register file holds the scores of 64 queries x keys and the sums of 64 x value_dim of a warpgroup,
/// shared memory two tiles of keys and two of values.  Tiles of FlashAttention-3, but narrower ones where every pair is worked out on its
/// own.
constexpr int attention_keys(int head_dim, int value_dim, Scores scores) {
  if (scores == Scores::biased) return 64;
  if (head_dim == 256) return 80;
  if (head_dim == 192) return value_dim == 128 ? 128 : 112;
  return 128;
}

template <class Element_, int HeadDim, int ValueDim, Scores TheScores>
struct AttentionTile {
  using Element                  = Element_;
  using Piece                    = AttentionPiece;
  static constexpr Scores scores = TheScores;
  // Of e4m3 a tile's keys share their scales.  Tensor cores add its products with some 14 bits, so a tile's are added up in float, and its
  // values come transposed (transpose_values.cuh): operands of single bytes have their depth along the rows.
  static constexpr bool e4m3 = std::is_same_v<Element, float8_e4m3_t>;

  static constexpr int head_dim = HeadDim, value_dim = ValueDim;  // of the problem, rounded up: what is missing comes as zeros
  // Beside scores and sums there are a tile's products with values: 64 + 64 + 64 registers at 128 keys.
  static constexpr int keys = e4m3 ? (TheScores == Scores::biased ? 64 : 128) : attention_keys(HeadDim, ValueDim, TheScores);
  static_assert(!e4m3 || (HeadDim == ValueDim && HeadDim <= 128 && attention_scale_rows % keys == 0));

  // Scores stay as they are beside the weights that are made of them, where there are registers: softmax.cuh.
  static constexpr bool keeps_scores = HeadDim == 128 && ValueDim == 128 && TheScores == Scores::plain && !e4m3;

  // Short rows leave registers for a third warpgroup, but not beside two sums of e4m3.
  static constexpr int groups     = HeadDim == 64 && !e4m3 ? 3 : 2;  // that multiply
  static constexpr int group_rows = 64;                              // queries of a warpgroup: wgmma's M
  static constexpr int rows       = groups * group_rows;
  static constexpr int math_warps = 4 * groups, team_threads = 128 * (groups + 1);
  static constexpr int math_registers  = groups == 3 ? 160 : (e4m3 || keeps_scores ? 240 : 232);
  static constexpr int other_registers = groups == 3 ? 32 : (e4m3 || keeps_scores ? 24 : 40);

  static constexpr int  row_bytes    = HeadDim * static_cast<int>(sizeof(Element)) < panel_row_bytes ? 64 : panel_row_bytes;
  static constexpr int  columns      = row_bytes / static_cast<int>(sizeof(Element));  // of a panel
  static constexpr int  query_panels = HeadDim / columns, value_panels = ValueDim / columns;
  static constexpr int  query_panel_bytes = group_rows * row_bytes, key_panel_bytes = keys * row_bytes;
  static constexpr int  query_bytes = query_panels * query_panel_bytes;  // of a warpgroup
  static constexpr int  key_bytes = query_panels * key_panel_bytes, value_bytes = value_panels * key_panel_bytes;
  static constexpr int  stages     = e4m3 ? 4 : 2;
  static constexpr bool take_turns = HeadDim > 128;  // at the tensor cores; with shorter rows warpgroups find an order of their own

  static constexpr int keys_offset   = groups * query_bytes;
  static constexpr int values_offset = keys_offset + stages * key_bytes;
  static constexpr int state_offset  = values_offset + stages * value_bytes;
  static constexpr int state_bytes   = 512;
  static constexpr int scratch_bytes = state_offset + state_bytes;
  static_assert(scratch_bytes + scratch_alignment <= largest_scratch(4 * (groups + 1)));
};

/// Of e4m3 a tile of keys has one scale, so it lies within one of the tensor's blocks: tiles are counted from the one that a packed
/// sequence begins in, whose first keys are other sequences'.
template <class Tile>
__device__ inline std::int32_t keys_before(std::int64_t first_key) {
  return Tile::e4m3 ? static_cast<std::int32_t>(static_cast<std::uint32_t>(first_key) % Tile::keys) : 0;
}

struct AttentionMaps {
  CUtensorMap query, key, value;
};

/// One launch of the kernel.
struct AttentionForwardCall {
  AttentionProblem       problem;
  BucketTable            buckets;
  AttentionForwardPlan   plan;
  AttentionForwardOutput output;

  __device__ const AttentionMaps* maps() const { return static_cast<const AttentionMaps*>(plan.maps); }
  __device__ std::int64_t items() const { return problem.batch * problem.heads * plan.blocks; }
};

template <class Tile>
struct AttentionShared {
  std::uint64_t  query_full, query_empty;
  std::uint64_t  key_full[Tile::stages], key_empty[Tile::stages];
  std::uint64_t  value_full[Tile::stages], value_clean[Tile::stages], value_empty[Tile::stages];
  std::uint64_t  piece_full[2], piece_empty[2];
  AttentionPiece pieces[2];
  float          key_factor[Tile::stages], value_scale[Tile::stages];  // of e4m3
};

}  // namespace Tributary::Impl::SM90
