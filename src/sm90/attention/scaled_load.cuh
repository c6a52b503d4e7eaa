#pragma once
#include "sm90/attention/load.cuh"
#include "sm90/attention/transpose_values.cuh"

// Loading of e4m3.  A tile of keys, or of transposed values, is one box with its scale beside it, and takes half of the time that one of
// 2-byte elements does; a single thread gets an instruction in some ten clocks.  So one warp loads queries and keys, another one values.

namespace Tributary::Impl::SM90 {

/// One thread of each warp.
template <class Tile>
class ScaledLoader {
 public:
  __device__ ScaledLoader(const AttentionForwardCall& call, AttentionShared<Tile>& shared, unsigned char* scratch, bool of_values)
      : call_(call), shared_(shared), scratch_(scratch), of_values_(of_values) {}

  __device__ void run(int team, int teams) {
    ptx::fence_proxy_tensormap(&call_.maps()->query);
    ptx::fence_proxy_tensormap(&call_.maps()->key);
    ptx::fence_proxy_tensormap(&call_.maps()->value);
    item_ = team;
    for (;;) {
      const AttentionPiece piece = of_values_ ? next_published() : draw(teams);
      if (piece.batch < 0) return;
      if (piece.key_tiles == 0) continue;
      if (!of_values_) load_queries(piece);
      load_tiles(piece);
    }
  }

 private:
  __device__ AttentionPiece next_published() {
    ptx::mbarrier_wait(&shared_.piece_full[piece_at_.slot], piece_at_.round);
    const AttentionPiece piece = shared_.pieces[piece_at_.slot];
    ptx::mbarrier_arrive(&shared_.piece_empty[piece_at_.slot]);
    piece_at_.next();
    return piece;
  }

  /// The next piece, published: rows of an item up to the end of a sequence.  A team's first item is its own number, the next ones come
  /// from the queue.
  __device__ AttentionPiece draw(int teams) {
    const AttentionProblem& p = call_.problem;
    AttentionPiece          piece{.batch = -1};
    if (item_ < call_.items()) {
      const SectionItem at(item_, p.batch * p.heads, call_.plan.blocks, call_.plan.section);
      // Causal: the last rows have the most keys, they go first.
      static_assert(Tile::rows == attention_scale_rows);  // an item's queries have one scale
      const std::int64_t begin   = (call_.plan.blocks - 1 - at.block) * Tile::rows;
      const std::int64_t end     = begin + Tile::rows < p.queries ? begin + Tile::rows : p.queries;
      const Segment      segment = p.packed.segment(at.pair / p.heads, begin + rows_done_, end, p.queries, p.keys);
      piece                      = describe_piece<Tile>(p, segment, static_cast<std::int32_t>(at.pair % p.heads));
      rows_done_ += piece.rows;
      if (begin + rows_done_ == end) {
        rows_done_ = 0;
        item_      = teams + static_cast<std::int64_t>(atomicAdd(call_.plan.next_item, 1));
      }
    }
    ptx::mbarrier_wait(&shared_.piece_empty[piece_at_.slot], piece_at_.round ^ 1);
    shared_.pieces[piece_at_.slot] = piece;
    ptx::mbarrier_arrive(&shared_.piece_full[piece_at_.slot]);
    piece_at_.next();
    return piece;
  }

  __device__ void load_queries(const AttentionPiece& piece) {
    ptx::mbarrier_wait(&shared_.query_empty, query_round_ ^ 1);
    query_round_ ^= 1;
    ptx::mbarrier_arrive_expect_tx(&shared_.query_full, Tile::groups * Tile::query_bytes);
    for (int group = 0; group < Tile::groups; ++group)
      ptx::cp_async_bulk_tensor(scratch_ + group * Tile::query_bytes, &call_.maps()->query, &shared_.query_full, 0, piece.head,
                                piece.row + group * Tile::group_rows, piece.batch);
  }

  /// Of keys the factor besides that makes scores of products, of plain ones exponents of 2; of values their scale.
  __device__ void load_tiles(const AttentionPiece& piece) {
    static_assert(Tile::key_bytes == Tile::value_bytes);
    const AttentionProblem& p      = call_.problem;
    std::uint64_t* const    full   = of_values_ ? shared_.value_full : shared_.key_full;
    std::uint64_t* const    empty  = of_values_ ? shared_.value_empty : shared_.key_empty;
    float* const            to     = of_values_ ? shared_.value_scale : shared_.key_factor;
    unsigned char* const    tiles  = scratch_ + (of_values_ ? Tile::values_offset : Tile::keys_offset);
    const CUtensorMap*      map    = of_values_ ? &call_.maps()->value : &call_.maps()->key;
    const float* const      scales = (of_values_ ? p.value_scale : p.key_scale).of_head(piece.batch, piece.key_head);
    const float             factor =
        of_values_ ? 1.0f
                               : p.scale * p.query_scale.of(piece.batch, piece.row, piece.head) * (Tile::scores == Scores::plain ? log2_e : 1.0f);
    std::int32_t row = piece.first_key - keys_before<Tile>(piece.first_key) + piece.last_tile * Tile::keys;
    // Where it lies among the transposed values.
    const std::int32_t moved = of_values_ && p.packed.cu_seqlens_k != nullptr ? transposed_offset(piece.sequence) : 0;
#pragma unroll 1
    for (int n = 0; n < piece.key_tiles; ++n, row -= Tile::keys, tile_at_.next()) {
      const float scale = scales[row / static_cast<std::int32_t>(attention_scale_rows)];
      ptx::mbarrier_wait(&empty[tile_at_.slot], tile_at_.round ^ 1);
      to[tile_at_.slot] = usable(factor * scale);
      ptx::mbarrier_arrive_expect_tx(&full[tile_at_.slot], Tile::key_bytes);
      ptx::cp_async_bulk_tensor(tiles + tile_at_.slot * Tile::key_bytes, map, &full[tile_at_.slot], of_values_ ? row + moved : 0,
                                piece.key_head, of_values_ ? 0 : row, piece.batch);
    }
  }

  /// Where exponents are compared, 0 or infinity times a hidden pair's -infinity would be no number; and what is no positive number is
  /// none.
  __device__ float usable(float factor) const {
    if (of_values_ || Tile::scores != Scores::plain) return factor;
    return factor > 0.0f ? fminf(fmaxf(factor, 1e-30f), 1e30f) : __int_as_float(0x7fffffff);
  }

  const AttentionForwardCall& call_;
  AttentionShared<Tile>&      shared_;
  unsigned char*              scratch_;
  const bool                  of_values_;
  RingPosition<2>             piece_at_;
  RingPosition<Tile::stages>  tile_at_;
  std::uint32_t               query_round_ = 0;
  std::int64_t                item_        = 0;
  std::int32_t                rows_done_   = 0;  // of its queries
};

}  // namespace Tributary::Impl::SM90
