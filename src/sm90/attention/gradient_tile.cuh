#pragma once
#include <cuda.h>

#include <cstdint>

#include "sm90/attention/attention.hpp"
#include "sm90/attention/tensors.cuh"
#include "sm90/launch.cuh"
#include "sm90/pipeline.cuh"
#include "sm90/ptx/mbarrier.cuh"

// Sizes of the kernel of attention's gradients, its parameters, and what a team's warps share.

namespace Tributary::Impl::SM90 {

/// The tile's dimension for heads and values of the problem: what is missing comes as zeros.
constexpr int gradient_dim(const AttentionProblem& p) {
  const std::int32_t most = p.head_dim > p.value_dim ? p.head_dim : p.value_dim;
  return most > 256 ? 512 : most > 128 ? 256 : tile_dim(most);
}

/// Teams that work on a block of long rows together.  A block has four parts of 64 keys, wgmma's M.  Each part has a maker, beyond 256
/// components a pair of them; one team gathers the gradients of queries, beyond 256 two.
inline constexpr int crew_parts = 4;
constexpr int        crew_halves(int dim) { return dim > 256 ? 2 : 1; }
constexpr int        crew_makers(int dim) { return crew_parts * crew_halves(dim); }
constexpr int        crew_teams(int dim) { return crew_makers(dim) + crew_halves(dim); }

/// Keys of a block: wgmma's M for each of two warpgroups, or of a crew.
constexpr int gradient_keys(int dim) { return dim > 128 ? crew_parts * 64 : 128; }

/// Queries of a step.  A register file holds the scores of 64 keys x queries of a warpgroup and their gradients beside 64 x (dim + dim)
/// sums: short rows leave room for 128 queries, unless each pair is worked out on its own.
constexpr int gradient_queries(int dim, Scores scores) {
  constexpr int of_short_rows = 128;
  return dim == 64 && scores == Scores::plain ? of_short_rows : 64;
}

/// Rows up to 128: each warpgroup has half of the keys.
template <class Element_, int Dim, Scores TheScores>
struct GradientTile {
  using Element                  = Element_;
  static constexpr Scores scores = TheScores;

  static constexpr int  dim        = Dim;
  static constexpr int  panels     = Dim / panel_columns;
  static constexpr int  block_keys = gradient_keys(Dim), keys = block_keys;
  static constexpr int  queries = gradient_queries(Dim, TheScores);
  static constexpr bool wide    = Dim > 128;
  static_assert(!wide);

  static constexpr int groups = 2, math_warps = 4 * groups, team_threads = 128 * (groups + 1);
  static constexpr int math_registers = 240, other_registers = 24;

  static constexpr int key_panel_bytes = keys * panel_row_bytes, query_panel_bytes = queries * panel_row_bytes;
  static constexpr int key_bytes = panels * key_panel_bytes, query_bytes = panels * query_panel_bytes;
  // Shared scores.  A third place changes nothing at 128 (docs/kernel-notes.md), but was there when this form was chosen; at 64 plain
  // scores leave no room for it.
  static constexpr int query_stages = 2, grad_out_stages = 2, score_stages = dim == 128 ? 3 : 2;
  static constexpr int score_bytes = queries / 64 * keys * panel_row_bytes;  // panels of 64 queries: a row a key, a column a query

  static constexpr int keys_offset     = 0;
  static constexpr int values_offset   = keys_offset + key_bytes;
  static constexpr int queries_offset  = values_offset + key_bytes;
  static constexpr int grad_out_offset = queries_offset + query_stages * query_bytes;
  static constexpr int scores_offset   = grad_out_offset + grad_out_stages * query_bytes;
  static constexpr int sums_offset     = scores_offset + score_stages * score_bytes;  // a part of a gradient of queries in each slot
  static constexpr int state_offset    = sums_offset + groups * gradient_part_floats * 4;
  static constexpr int state_bytes     = 3072;
  static constexpr int scratch_bytes   = state_offset + state_bytes;
  static_assert(scratch_bytes + scratch_alignment <= largest_scratch(team_threads / 32));

  static constexpr int parts = queries / 64 * panels, halves = 1;  // of the gradient of a step's queries

  // Slots that parts pass through, one a warpgroup.  Each has its own part, or both multiply the only one and every other one is a
  // warpgroup's.
  static constexpr int               slots = groups;
  KOKKOS_INLINE_FUNCTION static bool has_part(int slot, std::int32_t step) { return parts == slots || step % slots == slot; }
  KOKKOS_INLINE_FUNCTION static int  part_of(int slot) { return parts == 1 ? 0 : slot; }

  // Two warps add gradients of queries up, every other step: one waits for its turn while the other's sums are on their way.
  static constexpr int adders = 2;

  // Arrivals at barriers: of those who share scores, of those who have used them, of those who have done a piece.
  static constexpr int sharing_warps = math_warps, score_users = math_warps, piece_users = math_warps + adders;
};

/// What a warpgroup does, up to 256, or a team beyond: one makes weights, the other one gradients of scores of these.
enum class MakerRole { weighs, differentiates };

/// Rows up to 256: the warpgroups share the team's 64 keys, each has half of the columns of their gradients.  One weighs scores, the other
/// one makes gradients of scores of the weights.
template <class Element_, Scores TheScores>
struct WideGradientTile {
  using Element                  = Element_;
  static constexpr Scores scores = TheScores;

  static constexpr int  dim        = 256;
  static constexpr int  panels     = dim / panel_columns;
  static constexpr int  block_keys = gradient_keys(dim), keys = block_keys / crew_parts;
  static constexpr int  queries = gradient_queries(dim, TheScores);
  static constexpr bool wide    = true;

  static constexpr int groups = 2, math_warps = 4 * groups, team_threads = 128 * (groups + 1);
  static constexpr int math_registers = 240, other_registers = 24;

  static constexpr int key_panel_bytes = keys * panel_row_bytes, query_panel_bytes = queries * panel_row_bytes;
  static constexpr int key_bytes = panels * key_panel_bytes, query_bytes = panels * query_panel_bytes;
  static constexpr int query_stages = 2, grad_out_stages = 2, score_stages = scores == Scores::plain ? 2 : 1;
  // Weights and gradients of scores, a row a key, a column a query; where pairs are worked out on their own the gradient of values takes
  // other weights than the gradients of scores.
  static constexpr int score_bytes   = (scores == Scores::plain ? 2 : 3) * key_panel_bytes;
  static constexpr int weights_place = 0, gradients_place = key_panel_bytes,
                       slopes_place = scores == Scores::plain ? 0 : 2 * key_panel_bytes;

  static constexpr int keys_offset     = 0;
  static constexpr int values_offset   = keys_offset + key_bytes;
  static constexpr int queries_offset  = values_offset + key_bytes;
  static constexpr int grad_out_offset = queries_offset + query_stages * query_bytes;
  static constexpr int scores_offset   = grad_out_offset + grad_out_stages * query_bytes;
  static constexpr int sums_offset     = scores_offset + score_stages * score_bytes;  // not used: a team of its own has sums
  static constexpr int state_offset    = sums_offset;
  static constexpr int state_bytes     = scores == Scores::plain ? 1904 : 3072;  // 1904: with what a crew's team has besides, all there is
  static constexpr int scratch_bytes   = state_offset + state_bytes;

  static constexpr int slots = 1, adders = 1;           // not used
  static constexpr int sharing_warps = math_warps / 2;  // of weights, of gradients of scores
  // Beside the warps: the thread that hands gradients of scores over.
  static constexpr int score_users = math_warps + 1, piece_users = math_warps + 1;
};

/// Rows up to 512: of a pair of makers the one that weighs has 64 keys, and the gradients of their values; the other one has the values,
/// and the gradients of the keys.  Rows of queries and gradients of outputs pass by: of the one kind those that are
/// multiplied with them, of the other one those of which the gradient is a sum.
template <class Element_, Scores TheScores, MakerRole TheRole>
struct LongGradientTile {
  using Element                     = Element_;
  static constexpr Scores    scores = TheScores;
  static constexpr MakerRole role   = TheRole;

  static constexpr int  dim        = 512;
  static constexpr int  panels     = dim / panel_columns;
  static constexpr int  block_keys = gradient_keys(dim), keys = block_keys / crew_parts;
  static constexpr int  queries = gradient_queries(dim, TheScores);
  static constexpr bool wide = true, is_long = true;

  static constexpr int groups = 2, math_warps = 4 * groups, team_threads = 128 * (groups + 1);
  static constexpr int math_registers = 240, other_registers = 24;

  static constexpr int key_panel_bytes = keys * panel_row_bytes, query_panel_bytes = queries * panel_row_bytes;
  static constexpr int key_bytes = panels * key_panel_bytes, query_bytes = panels * query_panel_bytes;
  // What is made of products: a row a key, a column a query.
  static constexpr int score_stages = 2, score_bytes = key_panel_bytes;
  static constexpr int query_stages = 1, grad_out_stages = 1, adders = 1, slots = 1;  // not used

  static constexpr int keys_offset    = 0;  // or values
  static constexpr int rows_offset    = keys_offset + key_bytes;
  static constexpr int scores_offset  = rows_offset + 2 * query_bytes;
  static constexpr int weights_offset = scores_offset + score_stages * score_bytes;  // on their way between the teams of a pair
  static constexpr int state_offset   = weights_offset + score_bytes;
  static constexpr int state_bytes    = 2304;
  static constexpr int scratch_bytes  = state_offset + state_bytes;

  /// The first warpgroup makes what the second one takes, too; where pairs are worked out on their own the gradient of values takes other
  /// weights than the gradients of scores.
  static constexpr bool weighs = role == MakerRole::weighs, hands_weights_over = weighs && scores == Scores::biased;
  static constexpr int  making_warps = 4, taking_warps = 4;
  static constexpr int  score_users    = taking_warps + (hands_weights_over ? 0 : 1);  // and the thread that shares with the crew
  static constexpr int  weight_writers = weighs ? making_warps : 1, weight_users = weighs ? 1 : making_warps;
  static constexpr int  piece_users = math_warps + 1 + (weighs ? 0 : 1);  // threads that hand over, and that fetch
};

/// Gradients of queries of a crew's block: each warpgroup has half of the team's columns of them, and adds up over all keys of the block.
template <class Element_, int Halves>
struct GatherTile {
  using Element                  = Element_;
  static constexpr Scores scores = Scores::plain;  // whatever they were, their gradients come alike

  static constexpr int  dim        = 256;  // of the team, which is one of so many for all columns
  static constexpr int  halves     = Halves;
  static constexpr int  panels     = dim / panel_columns;
  static constexpr int  block_keys = gradient_keys(dim), keys = block_keys;
  static constexpr int  queries = gradient_queries(dim, scores);
  static constexpr bool wide    = true;

  static constexpr int groups = 2, math_warps = 4 * groups, team_threads = 128 * (groups + 1);

  static constexpr int key_panel_bytes = keys * panel_row_bytes, query_panel_bytes = queries * panel_row_bytes;
  static constexpr int key_bytes = panels * key_panel_bytes;
  // A stage a maker.  Queries and gradients of outputs: not used.
  static constexpr int score_stages = crew_parts, query_stages = 1, grad_out_stages = 1;
  static constexpr int score_bytes = keys / crew_parts * panel_row_bytes;

  static constexpr int keys_offset   = 0;
  static constexpr int scores_offset = keys_offset + key_bytes;
  static constexpr int sums_offset   = scores_offset + score_stages * score_bytes;
  static constexpr int state_offset  = sums_offset + panels * gradient_part_floats * 4;
  static constexpr int state_bytes   = 1904;
  static constexpr int scratch_bytes = state_offset + state_bytes;

  // As above, with two parts of each warpgroup.
  static constexpr int               parts = panels, slots = parts, adders = 2;
  KOKKOS_INLINE_FUNCTION static bool has_part(int, std::int32_t) { return true; }
  KOKKOS_INLINE_FUNCTION static int  part_of(int slot) { return slot; }

  static constexpr int sharing_warps = 1, score_users = math_warps, piece_users = math_warps + adders;
};

struct GradientMaps {
  CUtensorMap query, key, value, grad_out;
};

template <class Tile>
GradientMaps gradient_maps(const AttentionProblem& p, const void* grad_out, const std::int64_t (&grad_out_strides)[3]) {
  const auto map_of = [&](const void* data, const std::int64_t(&strides)[3], std::int64_t rows, std::int32_t heads, std::int32_t columns,
                          int box_rows) { return attention_map(p.type, data, strides, p.batch, rows, heads, columns, box_rows); };
  const CUtensorMap key = map_of(p.key, p.key_strides, p.keys, p.key_heads, p.head_dim, Tile::keys);
  if (p.queries == 0) return GradientMaps{key, key, key, key};  // nothing is loaded
  return GradientMaps{.query    = map_of(p.query, p.query_strides, p.queries, p.heads, p.head_dim, Tile::queries),
                      .key      = key,
                      .value    = map_of(p.value, p.value_strides, p.keys, p.key_heads, p.value_dim, Tile::keys),
                      .grad_out = map_of(grad_out, grad_out_strides, p.queries, p.heads, p.value_dim, Tile::queries)};
}

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
  std::int32_t alignment;    // i' - i
  std::int32_t left, right;  // the window; no longer than any sequence, -1: no limit
  std::int32_t query_row;    // of the tensors: the sequence's first
  std::int32_t first_slot;   // of the plan: the sequence's first tile of queries
  // Tiles of the sequence: as many, visited from the first one in this direction (1 or -1), until the one behind the last.
  std::int32_t query_tiles, first_tile, behind_last, direction;
};

/// A tile of queries of one head.
template <class Tile>
struct GradientStep {
  std::int32_t head, tile;  // the tile's number in the sequence

  /// The piece's first one.
  __device__ GradientStep(const AttentionProblem& p, const GradientPiece& piece)
      : head(piece.key_head * (p.heads / p.key_heads)), tile(piece.first_tile) {}

  __device__ void next(const GradientPiece& piece) {
    tile += piece.direction;
    if (tile != piece.behind_last) return;
    tile = piece.first_tile;
    ++head;
  }
  __device__ std::int32_t first_query() const { return tile * Tile::queries; }                                    // number in the sequence
  __device__ std::int32_t position(const GradientPiece& piece) const { return first_query() + piece.alignment; }  // i' of that query
};

__device__ inline std::int32_t steps_of(const AttentionProblem& p, const GradientPiece& piece) {
  return p.heads / p.key_heads * piece.query_tiles;
}

template <class Tile>
struct GradientShared {
  std::uint64_t keys_full, keys_clean, keys_empty;
  std::uint64_t queries_full[Tile::query_stages], queries_clean[Tile::query_stages], queries_empty[Tile::query_stages];
  std::uint64_t grad_out_full[Tile::grad_out_stages], grad_out_clean[Tile::grad_out_stages], grad_out_empty[Tile::grad_out_stages];
  std::uint64_t weights_full[Tile::score_stages], weights_empty[Tile::score_stages];  // of wide tiles
  std::uint64_t scores_full[Tile::score_stages], scores_empty[Tile::score_stages];
  std::uint64_t sums_full[Tile::adders][Tile::slots], sums_empty[Tile::slots];
  std::uint64_t piece_full[2], piece_empty[2];
  GradientPiece pieces[2];
  float         lse[Tile::query_stages][Tile::queries], shift[Tile::query_stages][Tile::queries];
  float         share[Tile::query_stages][Tile::scores == Scores::plain ? 2 : Tile::queries];  // not used where scores are plain
};

/// Of a maker of rows beyond 256.
template <class Tile>
requires(Tile::is_long) struct GradientShared<Tile> {
  std::uint64_t keys_full, keys_clean, keys_empty;  // or of values
  // Rows that are multiplied with these, rows that are summed; their first half of the columns and the second one.
  std::uint64_t rows_full[2][2], rows_clean[2][2], rows_empty[2][2];
  std::uint64_t scores_full[Tile::score_stages], scores_empty[Tile::score_stages];
  std::uint64_t weights_full[1], weights_empty[1];
  std::uint64_t piece_full[2], piece_empty[2];
  GradientPiece pieces[2];
  // Of every other step.
  float lse[2][Tile::queries], shift[2][Tile::queries], share[2][Tile::scores == Scores::plain ? 2 : Tile::queries];
};

template <class Tile>
__device__ void initialise(GradientShared<Tile>& shared, bool cleans) {
  ptx::mbarrier_init(&shared.keys_full, 1);
  ptx::mbarrier_init(&shared.keys_clean, 1);
  ptx::mbarrier_init(&shared.keys_empty, Tile::math_warps);
  for (int i = 0; i < Tile::query_stages; ++i) {
    ptx::mbarrier_init(&shared.queries_full[i], 2);  // what is copied, what is known of the rows
    ptx::mbarrier_init(&shared.queries_clean[i], 1);
    ptx::mbarrier_init(&shared.queries_empty[i], Tile::math_warps);
  }
  for (int i = 0; i < Tile::grad_out_stages; ++i) {
    ptx::mbarrier_init(&shared.grad_out_full[i], 1);
    ptx::mbarrier_init(&shared.grad_out_clean[i], 1);
    ptx::mbarrier_init(&shared.grad_out_empty[i], Tile::math_warps);
  }
  for (int i = 0; i < Tile::score_stages; ++i) {
    ptx::mbarrier_init(&shared.weights_full[i], Tile::sharing_warps);
    ptx::mbarrier_init(&shared.weights_empty[i], Tile::math_warps);
    ptx::mbarrier_init(&shared.scores_full[i], Tile::sharing_warps);
    ptx::mbarrier_init(&shared.scores_empty[i], Tile::score_users);
  }
  for (int i = 0; i < Tile::slots; ++i) {
    for (int adder = 0; adder < Tile::adders; ++adder) ptx::mbarrier_init(&shared.sums_full[adder][i], Tile::math_warps / Tile::groups);
    ptx::mbarrier_init(&shared.sums_empty[i], 1);
  }
  for (int i = 0; i < 2; ++i) {
    ptx::mbarrier_init(&shared.piece_full[i], 1);
    ptx::mbarrier_init(&shared.piece_empty[i], Tile::piece_users + (cleans ? 1 : 0));
  }
  ptx::fence_mbarrier_init();
}

template <class Tile>
requires(Tile::is_long) __device__ void initialise(GradientShared<Tile>& shared, bool cleans) {
  ptx::mbarrier_init(&shared.keys_full, 1);
  ptx::mbarrier_init(&shared.keys_clean, 1);
  ptx::mbarrier_init(&shared.keys_empty, Tile::making_warps);
  for (int use = 0; use < 2; ++use)
    for (int half = 0; half < 2; ++half) {
      ptx::mbarrier_init(&shared.rows_full[use][half], use == 0 && half == 0 ? 2 : 1);  // what is copied, what is known of the rows
      ptx::mbarrier_init(&shared.rows_clean[use][half], 1);
      ptx::mbarrier_init(&shared.rows_empty[use][half], Tile::making_warps);
    }
  for (int i = 0; i < Tile::score_stages; ++i) {
    ptx::mbarrier_init(&shared.scores_full[i], Tile::making_warps);
    ptx::mbarrier_init(&shared.scores_empty[i], Tile::score_users);
  }
  ptx::mbarrier_init(&shared.weights_full[0], Tile::weight_writers);
  ptx::mbarrier_init(&shared.weights_empty[0], Tile::weight_users);
  for (int i = 0; i < 2; ++i) {
    ptx::mbarrier_init(&shared.piece_full[i], 1);
    ptx::mbarrier_init(&shared.piece_empty[i], Tile::piece_users + (cleans ? 1 : 0));
  }
  ptx::fence_mbarrier_init();
}

/// What a team's warps share, once it is ready.
///
/// \param cleans  a warp zeroes rows that do not take part
template <class Tile>
__device__ GradientShared<Tile>& start_team(unsigned char* scratch, bool cleans) {
  auto& shared = *reinterpret_cast<GradientShared<Tile>*>(scratch + Tile::state_offset);
  static_assert(sizeof(shared) <= Tile::state_bytes);
  if (thread_of_team() == 0) initialise(shared, cleans);
  __syncthreads();
  return shared;
}

}  // namespace Tributary::Impl::SM90
