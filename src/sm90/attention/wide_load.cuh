#pragma once
#include "sm90/attention/wide_tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/tma.cuh"

// Loading for head dimensions beyond 256: a thread draws work items and cuts them where sequences end, another one streams queries, keys
// and values, and a warp zeroes rows of values that are none.

namespace Tributary::Impl::SM90 {

/// One thread.  Apart from the loads, as a single thread is slow: an item's description takes as long as a product.
template <class Tile>
class WideDealer {
 public:
  __device__ WideDealer(const AttentionForwardCall& call, WideShared<Tile>& shared) : call_(call), shared_(shared) {}

  __device__ void run(int team, int teams) {
    ptx::fence_proxy_tensormap(&call_.maps()->query);
    const AttentionProblem&     p      = call_.problem;
    const AttentionForwardPlan& plan   = call_.plan;
    const auto                  blocks = static_cast<std::uint32_t>(plan.blocks), section = static_cast<std::uint32_t>(plan.section),
               head_blocks = static_cast<std::uint32_t>(plan.head_blocks), key_heads = static_cast<std::uint32_t>(p.key_heads),
               pairs = static_cast<std::uint32_t>(p.batch) * key_heads * head_blocks, items = pairs * blocks;
    // A team's first item is its own number, the next ones come from the queue.
    for (auto item = static_cast<std::uint32_t>(team); item < items;
         item      = static_cast<std::uint32_t>(teams + atomicAdd(plan.next_item, 1))) {
      const SectionItem   at(item, pairs, blocks, section);
      const std::uint32_t batch_and_key_head = at.pair / head_blocks, batch = batch_and_key_head / key_heads;
      // Causal: the last rows have the most keys, they go first.
      const std::int64_t begin = static_cast<std::int64_t>(blocks - 1 - at.block) * plan.tile_queries;
      const std::int64_t end   = begin + plan.tile_queries < p.queries ? begin + plan.tile_queries : p.queries;
      for (std::int64_t row = begin; row < end;) {
        const Segment segment = p.packed.segment(batch, row, end, p.queries, p.keys);
        publish(describe(segment, static_cast<std::int32_t>(batch_and_key_head - batch * key_heads),
                         static_cast<std::int32_t>(at.pair - batch_and_key_head * head_blocks)));
        row += segment.rows;
      }
    }
    GroupedPiece none{};
    none.batch = -1;
    publish(none);
  }

 private:
  __device__ GroupedPiece describe(const Segment& segment, std::int32_t key_head, std::int32_t head_block) const {
    const AttentionProblem& p     = call_.problem;
    const std::int32_t      group = p.heads / p.key_heads, first_head = head_block * call_.plan.tile_heads;
    const std::int64_t      position = segment.first_query + p.alignment(segment);
    const KeyInterval       seen     = p.window_of(position, position + segment.rows - 1, segment.keys);
    GroupedPiece            piece{};
    piece.batch       = static_cast<std::int32_t>(segment.batch);
    piece.head        = key_head * group + first_head;
    piece.key_head    = key_head;
    piece.row         = static_cast<std::int32_t>(segment.row);
    piece.rows        = static_cast<std::int32_t>(segment.rows);
    piece.sequence    = static_cast<std::int32_t>(segment.sequence);
    piece.first_query = static_cast<std::int32_t>(segment.first_query);
    piece.position    = static_cast<std::int32_t>(position);
    piece.first_key   = static_cast<std::int32_t>(segment.first_key);
    piece.keys        = static_cast<std::int32_t>(segment.keys);
    piece.first_seen  = static_cast<std::int32_t>(seen.begin);
    piece.key_tiles   = static_cast<std::int32_t>((seen.end - seen.begin + Tile::keys - 1) / Tile::keys);
    piece.heads       = min(call_.plan.tile_heads, group - first_head);
    piece.pitch       = call_.plan.tile_heads;
    return piece;
  }

  __device__ void publish(const GroupedPiece& piece) {
    ptx::mbarrier_wait(&shared_.piece_empty[piece_at_.slot], piece_at_.round ^ 1);
    shared_.pieces[piece_at_.slot] = piece;
    ptx::mbarrier_arrive(&shared_.piece_full[piece_at_.slot]);
    piece_at_.next();
    // Pieces are described some time before the queries' place in shared memory is free; so long these come as far as the L2.
    if (piece.key_tiles == 0) return;
    for (int panel = 0; panel < Tile::dim / panel_columns; ++panel)
      ptx::cp_async_bulk_prefetch_tensor(&call_.maps()->query, panel * panel_columns, piece.head, piece.row, piece.batch);
  }

  const AttentionForwardCall& call_;
  WideShared<Tile>&           shared_;
  RingPosition<Tile::pieces>  piece_at_;
};

/// One thread.
template <class Tile>
class WideLoader {
 public:
  __device__ WideLoader(const AttentionForwardCall& call, WideShared<Tile>& shared, unsigned char* scratch)
      : call_(call),
        shared_(shared),
        scratch_(scratch),
        shares_(values_are_keys(call.problem)),
        key_at_{.both = shares_, .stage = 0},
        value_at_{.both = false, .stage = 1} {}

  __device__ void run() {
    ptx::fence_proxy_tensormap(&call_.maps()->query);
    ptx::fence_proxy_tensormap(&call_.maps()->key);
    ptx::fence_proxy_tensormap(&call_.maps()->value);
    for (RingPosition<Tile::pieces> at;; at.next()) {
      ptx::mbarrier_wait(&shared_.piece_full[at.slot], at.round);
      const GroupedPiece piece = shared_.pieces[at.slot];
      ptx::mbarrier_arrive(&shared_.piece_empty[at.slot]);
      if (piece.batch < 0) return;
      load(piece);
    }
  }

 private:
  __device__ void load(const GroupedPiece& piece) {
    for (int n = 0; n < piece.key_tiles; ++n) {
      load_tile(piece, n, &call_.maps()->key, key_at_);
      if (n == 0) load_queries(piece);
      if (!shares_) load_tile(piece, n, &call_.maps()->value, value_at_);
    }
  }

  /// Boxes of all rows, whether the piece has them or not.
  __device__ void load_queries(const GroupedPiece& piece) {
    ptx::mbarrier_wait(&shared_.query_empty, query_round_ ^ 1);
    query_round_ ^= 1;
    const int box_bytes = call_.plan.tile_queries * call_.plan.tile_heads * panel_row_bytes;
    ptx::mbarrier_arrive_expect_tx(&shared_.query_full, Tile::dim / panel_columns * box_bytes);
    for (int panel = 0; panel < Tile::dim / panel_columns; ++panel)
      ptx::cp_async_bulk_tensor(scratch_ + panel * Tile::panel_bytes, &call_.maps()->query, &shared_.query_full, panel * panel_columns,
                                piece.head, piece.row, piece.batch);
  }

  __device__ void load_tile(const GroupedPiece& piece, int n, const CUtensorMap* map, WideStages& at) {
    for (int half = 0; half < Tile::halves; ++half) {
      ptx::mbarrier_wait(&shared_.empty[at.stage][half], at.round ^ 1);
      ptx::mbarrier_arrive_expect_tx(&shared_.full[at.stage][half], Tile::half_bytes);
      for (int panel = 0; panel < Tile::panels; ++panel)
        ptx::cp_async_bulk_tensor(
            scratch_ + Tile::stages_offset + at.stage * Tile::tile_bytes + half * Tile::half_bytes + panel * Tile::panel_bytes, map,
            &shared_.full[at.stage][half], half * Tile::columns + panel * panel_columns, piece.key_head,
            piece.first_key + piece.first_seen + n * Tile::keys, piece.batch);
    }
    at.next();
  }

  const AttentionForwardCall& call_;
  WideShared<Tile>&           shared_;
  unsigned char*              scratch_;
  const bool                  shares_;
  WideStages                  key_at_, value_at_;
  std::uint32_t               query_round_ = 0;
};

/// A warp: follows the loader and zeroes rows of values that do not take part, since a weight of zero does not hide what is no number.
template <class Tile>
__device__ void clean_wide_values(const AttentionForwardCall& call, WideShared<Tile>& shared, unsigned char* scratch, int lane) {
  const AttentionProblem& p      = call.problem;
  const bool              shares = values_are_keys(p);
  WideStages              at{.both = shares, .stage = shares ? 0 : 1};
  for (RingPosition<Tile::pieces> piece_at;; piece_at.next()) {
    ptx::mbarrier_wait(&shared.piece_full[piece_at.slot], piece_at.round);
    const GroupedPiece piece = shared.pieces[piece_at.slot];
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.piece_empty[piece_at.slot]);
    if (piece.batch < 0) return;
    for (int n = 0; n < piece.key_tiles; ++n, at.next())
      for (int half = 0; half < Tile::halves; ++half) {
        ptx::mbarrier_wait(&shared.full[at.stage][half], at.round);
        clean_rows(scratch + Tile::stages_offset + at.stage * Tile::tile_bytes + half * Tile::half_bytes, Tile::keys, Tile::panels, lane,
                   [&](int r) { return takes_part(p, piece, piece.first_seen + n * Tile::keys + r); });
        ptx::fence_proxy_async();
        __syncwarp();
        if (lane == 0) ptx::mbarrier_arrive(&shared.clean[at.stage][half]);
      }
  }
}

}  // namespace Tributary::Impl::SM90
