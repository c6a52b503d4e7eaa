#pragma once
#include "sm90/attention/tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/tma.cuh"

// Loading: a warp draws work items, cuts them where sequences end, and streams queries, keys and values; another one zeroes rows of values
// that are none.

namespace Tributary::Impl::SM90 {

/// The piece of `segment`'s rows; the window says which tiles of keys it sees.
template <class Tile>
__device__ AttentionPiece describe_piece(const AttentionProblem& problem, const Segment& segment, std::int32_t head) {
  const std::int64_t position = segment.first_query + problem.alignment(segment);
  const KeyInterval  seen     = problem.window_of(position, position + segment.rows - 1, segment.keys);
  const std::int64_t before   = keys_before<Tile>(segment.first_key);
  const std::int64_t first = (seen.begin + before) / Tile::keys, last = (seen.end - 1 + before) / Tile::keys;
  // A window's ends only rise from row to row: what the first and the last row see, all see.  Other types have this for each warp.
  KeyInterval early{}, late{};
  if constexpr (Tile::e4m3)
    early = problem.window(position, segment.keys), late = problem.window(position + segment.rows - 1, segment.keys);
  return {.batch       = static_cast<std::int32_t>(segment.batch),
          .head        = head,
          .key_head    = problem.key_head(head),
          .row         = static_cast<std::int32_t>(segment.row),
          .rows        = static_cast<std::int32_t>(segment.rows),
          .sequence    = static_cast<std::int32_t>(segment.sequence),
          .first_query = static_cast<std::int32_t>(segment.first_query),
          .position    = static_cast<std::int32_t>(position),
          .first_key   = static_cast<std::int32_t>(segment.first_key),
          .keys        = static_cast<std::int32_t>(segment.keys),
          .key_tiles   = seen.begin < seen.end ? static_cast<std::int32_t>(last - first + 1) : 0,
          .last_tile   = static_cast<std::int32_t>(last),
          .clear_begin = static_cast<std::int32_t>(late.begin),
          .clear_end   = late.begin < late.end ? static_cast<std::int32_t>(early.end) : 0};
}

/// One thread.
template <class Tile>
class AttentionLoader {
 public:
  __device__ AttentionLoader(const AttentionForwardCall& call, AttentionShared<Tile>& shared, unsigned char* scratch)
      : call_(call), shared_(shared), scratch_(scratch) {}

  __device__ void run(int team, int teams) {
    ptx::fence_proxy_tensormap(&call_.maps()->query);
    ptx::fence_proxy_tensormap(&call_.maps()->key);
    ptx::fence_proxy_tensormap(&call_.maps()->value);
    const AttentionProblem& p     = call_.problem;
    const std::int64_t      items = call_.items(), pairs = p.batch * p.heads;
    // A team's first item is its own number, the next ones come from the queue.
    for (std::int64_t item = team; item < items; item = teams + static_cast<std::int64_t>(atomicAdd(call_.plan.next_item, 1))) {
      const SectionItem at(item, pairs, call_.plan.blocks, call_.plan.section);
      // Causal: the last rows have the most keys, they go first.
      const std::int64_t block = call_.plan.blocks - 1 - at.block, pair = at.pair;
      const std::int64_t begin = block * Tile::rows, end = begin + Tile::rows < p.queries ? begin + Tile::rows : p.queries;
      for (std::int64_t row = begin; row < end;) {
        const Segment segment = p.packed.segment(pair / p.heads, row, end, p.queries, p.keys);
        load(describe_piece<Tile>(p, segment, static_cast<std::int32_t>(pair % p.heads)));
        row += segment.rows;
      }
    }
    publish({.batch = -1});
  }

 private:
  __device__ void publish(const AttentionPiece& piece) {
    ptx::mbarrier_wait(&shared_.piece_empty[piece_at_.slot], piece_at_.round ^ 1);
    shared_.pieces[piece_at_.slot] = piece;
    ptx::mbarrier_arrive(&shared_.piece_full[piece_at_.slot]);
    piece_at_.next();
  }

  __device__ void load(const AttentionPiece& piece) {
    publish(piece);
    if (piece.key_tiles == 0) return;
    ptx::mbarrier_wait(&shared_.query_empty, query_round_ ^ 1);
    query_round_ ^= 1;
    ptx::mbarrier_arrive_expect_tx(&shared_.query_full, Tile::groups * Tile::query_bytes);
    for (int group = 0; group < Tile::groups; ++group)
      for (int panel = 0; panel < Tile::query_panels; ++panel)
        ptx::cp_async_bulk_tensor(scratch_ + group * Tile::query_bytes + panel * Tile::query_panel_bytes, &call_.maps()->query,
                                  &shared_.query_full, panel * Tile::columns, piece.head, piece.row + group * Tile::group_rows,
                                  piece.batch);
    // The weights of a tile of keys wait for the products of the next one: so do its values.
    load_keys(piece, 0);
    for (int n = 0; n < piece.key_tiles; ++n) {
      if (n + 1 < piece.key_tiles) load_keys(piece, n + 1);
      load_values(piece, n);
    }
  }

  __device__ void load_keys(const AttentionPiece& piece, int n) {
    load_tile(piece, n, &call_.maps()->key, shared_.key_full, shared_.key_empty, key_at_, Tile::keys_offset, Tile::key_bytes);
  }
  __device__ void load_values(const AttentionPiece& piece, int n) {
    load_tile(piece, n, &call_.maps()->value, shared_.value_full, shared_.value_empty, value_at_, Tile::values_offset, Tile::value_bytes);
  }

  __device__ void load_tile(const AttentionPiece& piece, int n, const CUtensorMap* map, std::uint64_t* full, std::uint64_t* empty,
                            RingPosition<Tile::stages>& at, int offset, int bytes) {
    ptx::mbarrier_wait(&empty[at.slot], at.round ^ 1);
    ptx::mbarrier_arrive_expect_tx(&full[at.slot], bytes);
    for (int panel = 0; panel < bytes / Tile::key_panel_bytes; ++panel)
      ptx::cp_async_bulk_tensor(scratch_ + offset + at.slot * bytes + panel * Tile::key_panel_bytes, map, &full[at.slot],
                                panel * Tile::columns, piece.key_head, piece.first_key + (piece.last_tile - n) * Tile::keys, piece.batch);
    at.next();
  }

  const AttentionForwardCall& call_;
  AttentionShared<Tile>&      shared_;
  unsigned char*              scratch_;
  RingPosition<2>             piece_at_;
  RingPosition<Tile::stages>  key_at_, value_at_;
  std::uint32_t               query_round_ = 0;
};

/// A warp: follows the loader and zeroes rows of values that do not take part, since a weight of zero does not hide what is no number.
template <class Tile>
__device__ void clean_values(const AttentionForwardCall& call, AttentionShared<Tile>& shared, unsigned char* scratch, int lane) {
  const AttentionProblem&    p = call.problem;
  RingPosition<Tile::stages> at;
  for (RingPosition<2> piece_at;; piece_at.next()) {
    ptx::mbarrier_wait(&shared.piece_full[piece_at.slot], piece_at.round);
    const AttentionPiece piece = shared.pieces[piece_at.slot];
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.piece_empty[piece_at.slot]);
    if (piece.batch < 0) return;
    for (int n = 0; n < piece.key_tiles; ++n, at.next()) {
      ptx::mbarrier_wait(&shared.value_full[at.slot], at.round);
      clean_rows(scratch + Tile::values_offset + at.slot * Tile::value_bytes, Tile::keys, Tile::value_panels, lane,
                 [&](int r) { return takes_part(p, piece, (piece.last_tile - n) * Tile::keys + r); });
      ptx::fence_proxy_async();
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(&shared.value_clean[at.slot]);
    }
  }
}

}  // namespace Tributary::Impl::SM90
