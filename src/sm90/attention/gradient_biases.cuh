#pragma once
#include <limits>

#include "sm90/attention/gradient_load.cuh"

// Of the kernel of gradients of biases: sizes, parameters, loading.

namespace Tributary::Impl::SM90 {

/// Of a block: of rows beyond 256 shared memory holds no more beside their values.
constexpr int bias_gradient_keys(int dim) { return dim > 256 ? 64 : 128; }

/// Each warpgroup that multiplies has 64 of the keys.
template <class Element_, int Dim>
struct BiasGradientTile {
  using Element                  = Element_;
  static constexpr Scores scores = Scores::biased;

  static constexpr int  dim = Dim, panels = Dim / panel_columns;
  static constexpr int  keys = bias_gradient_keys(Dim), queries = Dim > 256 ? 32 : 64;
  static constexpr bool wide = false;

  static constexpr int groups = keys / 64, math_warps = 4 * groups, team_threads = 384;
  static constexpr int math_registers = 208, other_registers = 88;

  static constexpr int key_panel_bytes = keys * panel_row_bytes, query_panel_bytes = queries * panel_row_bytes;
  static constexpr int key_bytes = panels * key_panel_bytes, query_bytes = panels * query_panel_bytes;
  static constexpr int query_stages = Dim > 128 ? 1 : 2, grad_out_stages = query_stages;
  // Not used, since nothing is shared or handed over; but what has done a piece are the math warps.
  static constexpr int score_stages = 1, slots = 1, adders = 1, sharing_warps = math_warps, score_users = math_warps;
  static constexpr int piece_users = math_warps;

  // Of the table, in one launch: what fits, and T5's 32 in any case.
  static constexpr int buckets = Dim == 256 ? 32 : 64, bucket_floats = 32 * math_warps;

  static constexpr int keys_offset     = 0;
  static constexpr int values_offset   = keys_offset + key_bytes;
  static constexpr int queries_offset  = values_offset + key_bytes;
  static constexpr int grad_out_offset = queries_offset + query_stages * query_bytes;
  static constexpr int buckets_offset  = grad_out_offset + grad_out_stages * query_bytes;
  static constexpr int state_offset    = buckets_offset + buckets * bucket_floats * 4;
  static constexpr int state_bytes     = 1024 * query_stages + 512;
  static constexpr int scratch_bytes   = state_offset + state_bytes;
  static_assert(scratch_bytes + scratch_alignment <= largest_scratch(team_threads / 32));
};

/// One launch of the kernel: for sums over queries, or for a mask with a row a query.
struct BiasGradientCall : AttentionBackwardCall {
  float *      alibi_keys = nullptr, *mask_keys = nullptr, *bucket_sums = nullptr;  // of BiasGradientPlan; null: not here
  std::int32_t first_bucket = 0, bucket_count = 0;                                  // of the table, here
  float*       mask            = nullptr;                                           // null: not here
  std::int64_t mask_strides[3] = {};                                                // batch, head, row; 0 where the mask is the same
  bool         all_batches = false, all_heads = false;  // an item takes them one after another, since the mask is the same for them

  std::int64_t blocks      = 0;                                         // of keys
  std::int64_t chunk_tiles = std::numeric_limits<std::int32_t>::max();  // of queries, that an item has of each sequence: all
  std::int64_t chunks      = 1;                                         // how many such parts there are

  KOKKOS_INLINE_FUNCTION std::int64_t batch_groups() const { return all_batches ? 1 : problem.batch; }
  KOKKOS_INLINE_FUNCTION std::int64_t head_groups() const { return all_heads ? 1 : problem.key_heads; }
  KOKKOS_INLINE_FUNCTION std::int64_t bias_items() const { return batch_groups() * head_groups() * chunks * blocks; }
  /// Whether an element of the mask's gradient has more than one term.
  __device__ bool adds_to_mask() const { return all_batches || all_heads; }
};

/// A warp: draws items, and loads what their pieces need.
template <class Tile>
class BiasGradientLoader : GradientLoader<Tile> {
 public:
  __device__ BiasGradientLoader(const BiasGradientCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int lane)
      : GradientLoader<Tile>(call, shared, scratch, lane), call_(call) {}

  __device__ void run() {
    this->see_maps();
    const AttentionProblem& p         = call_.problem;
    const bool              ascending = this->sequences_ascend();
    for (std::int64_t item = this->draw(); item < call_.bias_items(); item = this->draw()) {
      const std::int64_t block = item % call_.blocks, chunk = item / call_.blocks % call_.chunks,
                         group = item / call_.blocks / call_.chunks;
      const Range batches      = part(call_.all_batches, p.batch, group / call_.head_groups()),
                  heads        = part(call_.all_heads, p.key_heads, group % call_.head_groups());
      for (std::int64_t batch = batches.begin; batch < batches.end; ++batch)
        for (std::int64_t head = heads.begin; head < heads.end; ++head)
          load_block(block, chunk, batch, static_cast<std::int32_t>(head), ascending);
    }
    this->publish({.batch = -1});
  }

 private:
  struct Range {
    std::int64_t begin, end;
  };
  __device__ static Range part(bool all, std::int64_t count, std::int64_t group) { return all ? Range{0, count} : Range{group, group + 1}; }

  __device__ void load_block(std::int64_t block, std::int64_t chunk, std::int64_t batch, std::int32_t key_head, bool ascending) {
    const AttentionProblem& p = call_.problem;
    const PackedOffsets     by_key{p.packed.cu_seqlens_k, p.packed.cu_seqlens_q, p.packed.sequences};
    const std::int64_t      begin = block * Tile::keys, end = begin + Tile::keys < p.keys ? begin + Tile::keys : p.keys;
    for (std::int64_t row = begin; row < end;) {
      Segment k = by_key.segment(batch, row, end, p.keys, p.queries);
      if (!ascending) k.keys = 0;
      const GradientPiece piece = in_chunk(describe_keys<Tile>(call_, k, key_head, true), chunk);
      // Sums are written even where there is nothing to add up.
      if (piece.query_tiles > 0 || call_.mask == nullptr) this->load(this->publish(piece));
      row += k.rows;
    }
  }

  /// The piece with those of its tiles of queries that are in a chunk.
  __device__ GradientPiece in_chunk(GradientPiece piece, std::int64_t chunk) const {
    const std::int64_t begin = chunk * call_.chunk_tiles, end = begin + call_.chunk_tiles;
    const std::int64_t first = clip(piece.first_tile, begin, end), after = clip(piece.first_tile + piece.query_tiles, begin, end);
    piece.query_tiles = static_cast<std::int32_t>(after - first);
    piece.first_tile  = static_cast<std::int32_t>(first);
    piece.behind_last = static_cast<std::int32_t>(after);
    return piece;
  }

  const BiasGradientCall& call_;
};

}  // namespace Tributary::Impl::SM90
