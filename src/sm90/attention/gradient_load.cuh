#pragma once
#include <initializer_list>

#include "sm90/attention/gradient_tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/tma.cuh"

// Loading: a warp draws work items, cuts them where sequences end, and loads keys and values, then the stream of queries with what is known
// of their rows; another one zeroes rows that are none.

namespace Tributary::Impl::SM90 {

/// The piece of keys `k`: rows as queries are in other segments.
template <class Tile>
__device__ GradientPiece describe_keys(const AttentionBackwardCall& call, const Segment& k, std::int32_t key_head, bool upwards) {
  const AttentionProblem& p = call.problem;
  const Segment           queries{k.batch, k.sequence, k.first_key, k.keys, 0, k.keys, k.row - k.first_query, k.queries};
  const KeyInterval       seen  = p.queries_of(k.first_query, k.first_query + k.rows - 1, queries);
  const auto              first = static_cast<std::int32_t>(seen.begin / Tile::queries),
             last               = static_cast<std::int32_t>((seen.end - 1) / Tile::queries);
  const auto limit              = [](std::int64_t window) { return static_cast<std::int32_t>(window < 1 << 30 ? window : 1 << 30); };
  return {.batch            = static_cast<std::int32_t>(k.batch),
          .key_head         = key_head,
          .key_row          = static_cast<std::int32_t>(k.row),
          .keys             = static_cast<std::int32_t>(k.rows),
          .sequence         = static_cast<std::int32_t>(k.sequence),
          .first_key        = static_cast<std::int32_t>(k.first_query),
          .sequence_keys    = static_cast<std::int32_t>(k.queries),
          .sequence_queries = static_cast<std::int32_t>(k.keys),
          .alignment        = static_cast<std::int32_t>(p.alignment(queries)),
          .left             = limit(p.left),
          .right            = limit(p.right),
          .query_row        = static_cast<std::int32_t>(k.first_key),
          .first_slot       = static_cast<std::int32_t>(call.plan.slot(k.batch, p.packed, k.first_key, k.sequence, 0)),
          .query_tiles      = seen.begin < seen.end ? last - first + 1 : 0,
          .first_tile       = upwards ? first : last,
          .behind_last      = upwards ? last + 1 : first - 1,
          .direction        = upwards ? 1 : -1};
}

/// A warp.
template <class Tile>
class GradientLoader {
 public:
  __device__ GradientLoader(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int lane)
      : call_(call), shared_(shared), scratch_(scratch), lane_(lane) {}

  /// Blocks of keys are drawn in the order of their turns, by teams that run: what one waits for is being worked on.
  __device__ void run() {
    run([this] { return draw(); }, 0);
  }

  /// Of the blocks that `next` says, the keys from the team's first one on.
  template <class Next>
  __device__ void run(const Next& next, int first_key) {
    run(next, first_key, [this](const GradientPiece& piece) { load(piece); });
  }

 protected:
  /// The same; load(piece) loads what the team has of a piece.
  template <class Next, class Load>
  __device__ void run(const Next& next, int first_key, const Load& load) {
    see_maps();
    const bool ascending = sequences_ascend();
    for (std::int64_t item = next(); item < call_.items(); item = next())
      for_each_piece(item, ascending, [&](GradientPiece piece, bool) {
        piece.key_row += first_key;
        piece.first_key += first_key;
        piece.keys = min(piece.keys - first_key, Tile::keys);  // none: the team takes part with weights of zero
        load(publish(piece));
      });
    publish({.batch = -1});
  }

  /// function(piece, whether it is the last one) for what a block of keys has of each sequence.
  template <class Function>
  __device__ void for_each_piece(std::int64_t item, bool ascending, const Function& function) const {
    const AttentionProblem& p = call_.problem;
    const PackedOffsets     by_key{p.packed.cu_seqlens_k, p.packed.cu_seqlens_q, p.packed.sequences};
    const std::int64_t      pairs = p.batch * p.key_heads;
    const auto [number, pair]     = SectionItem(item, pairs, call_.plan.blocks, call_.plan.section);
    const bool         upwards    = goes_upwards(pair, pairs);
    const std::int64_t block      = upwards ? call_.plan.blocks - 1 - number : number;
    const std::int64_t begin = block * Tile::block_keys, end = begin + Tile::block_keys < p.keys ? begin + Tile::block_keys : p.keys;
    for (std::int64_t row = begin; row < end;) {
      Segment k = by_key.segment(pair / p.key_heads, row, end, p.keys, p.queries);
      if (!ascending) k.keys = 0;
      row += k.rows;
      function(describe_keys<Tile>(call_, k, static_cast<std::int32_t>(pair % p.key_heads), upwards), row >= end);
    }
  }

  __device__ void see_maps() const {
    if (lane_ != 0) return;
    ptx::fence_proxy_tensormap(&call_.maps()->query);
    ptx::fence_proxy_tensormap(&call_.maps()->key);
    ptx::fence_proxy_tensormap(&call_.maps()->value);
    ptx::fence_proxy_tensormap(&call_.maps()->grad_out);
  }

  __device__ std::int64_t draw() const {
    const std::int32_t item = lane_ == 0 ? atomicAdd(call_.plan.next_item, 1) : 0;
    return __shfl_sync(0xffffffffu, item, 0);
  }

  /// Causal: blocks of the last keys first, each from its first queries on, the diagonal.  Then teams that start together are at different
  /// tiles of queries all the time and find their turns come; from the last tile of queries on each would wait for the one before.  The
  /// last pairs go the other way, longest blocks first, so that all teams end at the same time.
  __device__ bool goes_upwards(std::int64_t pair, std::int64_t pairs) const {
    const AttentionProblem& p = call_.problem;
    return p.left < 0 && p.right >= 0 && pair < (pairs - 1) / call_.plan.section * call_.plan.section;
  }

  /// Whether packed sequences follow one another.  Turns, and the numbers of tiles, count on it: from other offsets come gradients of zero,
  /// not teams that wait for ever.
  __device__ bool sequences_ascend() const {
    const PackedOffsets& packed   = call_.problem.packed;
    bool                 descends = false;
    for (std::int64_t s = lane_; packed.cu_seqlens_q != nullptr && s < packed.sequences; s += 32) {
      const bool queries = packed.cu_seqlens_q[s] > packed.cu_seqlens_q[s + 1], keys = packed.cu_seqlens_k[s] > packed.cu_seqlens_k[s + 1];
      descends = descends || queries || keys;
    }
    return !__any_sync(0xffffffffu, descends);
  }

  /// The piece where all warps find it.
  __device__ const GradientPiece& publish(const GradientPiece& piece) {
    GradientPiece& published = shared_.pieces[piece_at_.slot];
    if (lane_ == 0) {  // another lane might look when a piece without queries is done already, and wait for the next round
      ptx::mbarrier_wait(&shared_.piece_empty[piece_at_.slot], piece_at_.round ^ 1);
      published = piece;
      ptx::mbarrier_arrive(&shared_.piece_full[piece_at_.slot]);
    }
    piece_at_.next();
    __syncwarp();
    return published;
  }

  __device__ void load(const GradientPiece& piece) {
    if (piece.query_tiles == 0) return;
    ptx::mbarrier_wait(&shared_.keys_empty, keys_round_ ^ 1);
    keys_round_ ^= 1;
    if (lane_ == 0) {
      ptx::mbarrier_arrive_expect_tx(&shared_.keys_full, 2 * Tile::key_bytes);
      for (int panel = 0; panel < Tile::panels; ++panel) {
        unsigned char* const to = scratch_ + panel * Tile::key_panel_bytes;
        copy(to + Tile::keys_offset, &call_.maps()->key, &shared_.keys_full, panel, piece.key_head, piece.key_row, piece.batch);
        copy(to + Tile::values_offset, &call_.maps()->value, &shared_.keys_full, panel, piece.key_head, piece.key_row, piece.batch);
      }
    }
    __syncwarp();
    GradientStep<Tile> step(call_.problem, piece);
    for (std::int32_t n = steps_of(call_.problem, piece); n > 0; --n, step.next(piece)) load_queries(piece, step);
  }

  __device__ static void copy(unsigned char* to, const CUtensorMap* map, std::uint64_t* full, int panel, std::int32_t head,
                              std::int32_t row, std::int32_t batch) {
    ptx::cp_async_bulk_tensor(to, map, full, panel * panel_columns, head, row, batch);
  }

  /// What is known of a step's rows, each lane's.  A query that is none has no weight.
  class Known {
   public:
    __device__ Known(const AttentionBackwardCall& call, const GradientPiece& piece, const GradientStep<Tile>& step, int lane) {
      const RowStatistics& from = call.statistics;
      const std::int64_t   at =
          (piece.batch * std::int64_t{call.problem.heads} + step.head) * call.problem.queries + piece.query_row + step.first_query() + lane;
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const bool exists = step.first_query() + lane + 32 * i < piece.sequence_queries;
        lse_[i]           = exists ? from.lse[at + 32 * i] : __int_as_float(0x7f800000);
        shift_[i]         = exists ? from.shift[at + 32 * i] : 0.0f;
        if constexpr (Tile::scores == Scores::biased) share_[i] = exists && from.share != nullptr ? from.share[at + 32 * i] : 1.0f;
      }
    }
    __device__ void put(GradientShared<Tile>& shared, int slot, int lane) const {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        shared.lse[slot][lane + 32 * i]   = Tile::scores == Scores::plain ? lse_[i] * log2_e : lse_[i];
        shared.shift[slot][lane + 32 * i] = shift_[i];
        if constexpr (Tile::scores == Scores::biased) shared.share[slot][lane + 32 * i] = share_[i];
      }
    }

   private:
    static constexpr int count = Tile::queries / 32;

    float lse_[count], shift_[count], share_[count];
  };

  const AttentionBackwardCall& call_;
  GradientShared<Tile>&        shared_;
  unsigned char*               scratch_;
  const int                    lane_;
  std::uint32_t                keys_round_ = 0;

 private:
  __device__ void load_queries(const GradientPiece& piece, const GradientStep<Tile>& step) {
    // What is known of the rows is on its way while the place is still in use.
    const std::int32_t   row = piece.query_row + step.first_query();
    const Known          known(call_, piece, step, lane_);
    std::uint64_t* const full = &shared_.queries_full[query_at_.slot];
    ptx::mbarrier_wait(&shared_.queries_empty[query_at_.slot], query_at_.round ^ 1);
    if (lane_ == 0)
      copy_rows(Tile::queries_offset + query_at_.slot * Tile::query_bytes, &call_.maps()->query, full, step.head, row, piece.batch);
    known.put(shared_, query_at_.slot, lane_);
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(full);
    query_at_.next();
    if (lane_ == 0) {  // alone: nothing holds the warp together until the place is free again
      ptx::mbarrier_wait(&shared_.grad_out_empty[grad_out_at_.slot], grad_out_at_.round ^ 1);
      copy_rows(Tile::grad_out_offset + grad_out_at_.slot * Tile::query_bytes, &call_.maps()->grad_out,
                &shared_.grad_out_full[grad_out_at_.slot], step.head, row, piece.batch);
    }
    grad_out_at_.next();
    __syncwarp();
  }

  __device__ void copy_rows(int offset, const CUtensorMap* map, std::uint64_t* full, std::int32_t head, std::int32_t row,
                            std::int32_t batch) const {
    ptx::mbarrier_arrive_expect_tx(full, Tile::query_bytes);
    for (int panel = 0; panel < Tile::panels; ++panel)
      copy(scratch_ + offset + panel * Tile::query_panel_bytes, map, full, panel, head, row, batch);
  }

  RingPosition<2>                     piece_at_;
  RingPosition<Tile::query_stages>    query_at_;
  RingPosition<Tile::grad_out_stages> grad_out_at_;
};

/// Whether row r of a piece's keys takes part.
__device__ inline bool is_key(const AttentionProblem& p, const GradientPiece& piece, int r) {
  return r < piece.keys && (p.key_keep == nullptr || p.key_keep[piece.batch * p.key_keep_stride + piece.key_row + r] != 0);
}

/// What a warp has zeroed may be multiplied.
__device__ inline void arrive_clean(std::uint64_t* clean, int lane) {
  ptx::fence_proxy_async();
  __syncwarp();
  if (lane == 0) ptx::mbarrier_arrive(clean);
}

/// A warp: follows the loader and zeroes keys that do not take part, in the places at the offsets, since a weight of zero does not hide
/// what is no number; then calls clean_steps(piece).
template <class Tile, class CleanSteps>
__device__ void clean_keys(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int lane,
                           std::initializer_list<int> offsets, const CleanSteps& clean_steps) {
  std::uint32_t keys_round = 0;
  for (RingPosition<2> piece_at;; piece_at.next()) {
    ptx::mbarrier_wait(&shared.piece_full[piece_at.slot], piece_at.round);
    const GradientPiece piece = shared.pieces[piece_at.slot];
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.piece_empty[piece_at.slot]);
    if (piece.batch < 0) return;
    if (piece.query_tiles == 0) continue;
    ptx::mbarrier_wait(&shared.keys_full, keys_round);
    keys_round ^= 1;
    for (const int offset : offsets)
      clean_rows(scratch + offset, Tile::keys, Tile::panels, lane, [&](int r) { return is_key(call.problem, piece, r); });
    arrive_clean(&shared.keys_clean, lane);
    clean_steps(piece);
  }
}

/// Keys, values, queries and gradients of outputs.
template <class Tile>
__device__ void clean_tiles(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int lane) {
  RingPosition<Tile::query_stages>    query_at;
  RingPosition<Tile::grad_out_stages> grad_out_at;
  clean_keys(call, shared, scratch, lane, {Tile::keys_offset, Tile::values_offset}, [&](const GradientPiece& piece) {
    GradientStep<Tile> step(call.problem, piece);
    for (std::int32_t n = steps_of(call.problem, piece); n > 0; --n, query_at.next(), grad_out_at.next(), step.next(piece)) {
      const auto is_query = [&](int r) { return step.first_query() + r < piece.sequence_queries; };
      ptx::mbarrier_wait(&shared.queries_full[query_at.slot], query_at.round);
      clean_rows(scratch + Tile::queries_offset + query_at.slot * Tile::query_bytes, Tile::queries, Tile::panels, lane, is_query);
      arrive_clean(&shared.queries_clean[query_at.slot], lane);
      ptx::mbarrier_wait(&shared.grad_out_full[grad_out_at.slot], grad_out_at.round);
      clean_rows(scratch + Tile::grad_out_offset + grad_out_at.slot * Tile::query_bytes, Tile::queries, Tile::panels, lane, is_query);
      arrive_clean(&shared.grad_out_clean[grad_out_at.slot], lane);
    }
  });
}

}  // namespace Tributary::Impl::SM90
