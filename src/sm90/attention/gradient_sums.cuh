#pragma once
#include "sm90/attention/gradient_tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/global.cuh"
#include "sm90/ptx/tma.cuh"

// Gradients of queries: sums of the blocks' parts in device memory, in the order of registers, and what they become.

namespace Tributary::Impl::SM90 {

/// Where element (query, column) of a part lies in what hand_over leaves: four elements a thread, thread by thread.
KOKKOS_INLINE_FUNCTION int place_in_part(int query, int column) {
  const int thread = query / 16 * 32 + query % 8 * 4 + column % 8 / 2;
  return column / 8 * 512 + thread * 4 + query % 16 / 8 * 2 + column % 2;
}

/// How many blocks of keys come before the piece's, of those that the step's queries see: blocks are drawn in order of keys, or the other
/// way round.
template <class Tile>
__device__ std::int32_t turn_of(const GradientPiece& piece, const GradientStep<Tile>& step) {
  const std::int32_t start = piece.key_row - piece.first_key,
                     block = piece.key_row / Tile::block_keys;  // start: row of the sequence's first key
  if (piece.direction < 0) {
    const std::int32_t seen = piece.left < 0 ? 0 : max(step.position(piece) - piece.left, 0);
    return block - (start + seen) / Tile::block_keys;
  }
  const std::int32_t last_query = min(step.first_query() + Tile::queries, piece.sequence_queries) - 1;
  const std::int32_t seen       = min(last_query + piece.alignment, piece.sequence_keys - 1 - piece.right) + piece.right;
  return (start + seen) / Tile::block_keys - block;
}

/// Adds the parts up in device memory, each at its turn unless the order may differ; one thread of an adder.
///
/// \param half  of the columns, where teams share them
template <class Tile>
__device__ void add_queries(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int adder,
                            int half = 0) {
  const AttentionProblem&    p                       = call.problem;
  std::uint32_t              sums_round[Tile::slots] = {};
  RingPosition<Tile::adders> adder_at;
  for (RingPosition<2> piece_at;; piece_at.next()) {
    ptx::mbarrier_wait(&shared.piece_full[piece_at.slot], piece_at.round);
    const GradientPiece& piece = shared.pieces[piece_at.slot];
    if (piece.batch < 0) return ptx::cp_async_bulk_wait();
    const std::int32_t steps = steps_of(p, piece);
    GradientStep<Tile> step(p, piece);
    for (std::int32_t n = 0; n < steps; ++n, adder_at.next(), step.next(piece)) {
      if (adder_at.slot != adder) continue;
      const std::int32_t  turn  = turn_of(piece, step);
      const std::int64_t  at    = ((piece.first_slot + step.tile) * std::int64_t{p.heads} + step.head) * Tile::halves + half;
      std::int32_t* const turns = call.plan.turns + at;
      if (p.deterministic) {
        while (ptx::ld_acquire(turns) != turn) __nanosleep(20);
        ptx::fence_proxy_async_global();
      }
      float* const to = call.plan.sums + at * Tile::parts * gradient_part_floats;
      for (int slot = 0; slot < Tile::slots; ++slot) {
        if (!Tile::has_part(slot, n)) continue;
        ptx::mbarrier_wait(&shared.sums_full[adder][slot], sums_round[slot]);
        sums_round[slot] ^= 1;
        const auto* const from    = reinterpret_cast<const float*>(scratch + Tile::sums_offset) + slot * gradient_part_floats;
        float* const      part_to = to + Tile::part_of(slot) * gradient_part_floats;
        if (p.deterministic && turn == 0)
          ptx::cp_async_bulk(part_to, from, gradient_part_floats * 4);
        else
          ptx::cp_reduce_async_bulk_add(part_to, from, gradient_part_floats * 4);
        ptx::cp_async_bulk_commit_group();
      }
      ptx::cp_async_bulk_wait_read();
      for (int slot = 0; slot < Tile::slots; ++slot)
        if (Tile::has_part(slot, n)) ptx::mbarrier_arrive(&shared.sums_empty[slot]);
      if (p.deterministic) {
        ptx::cp_async_bulk_wait();
        ptx::fence_proxy_async_global();
        ptx::st_release(turns, turn + 1);
      }
    }
    ptx::mbarrier_arrive(&shared.piece_empty[piece_at.slot]);
  }
}

/// Before the first turn; sums that no first block of keys writes begin with zero.
struct StartSums {
  AttentionBackwardPlan plan;
  std::int64_t          parts;
  int                   halves;
  bool                  clear_sums;

  KOKKOS_FUNCTION void operator()(const RowPolicy<Kokkos::Cuda>::member_type& team) const {
    const std::int64_t at = team.league_rank(), floats = parts * gradient_part_floats;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, clear_sums ? floats : 0),
                         [&](const std::int64_t i) { plan.sums[at * floats + i] = 0.0f; });
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, halves), [&](const int half) { plan.turns[at * halves + half] = 0; });
  }
};

/// Sums in the order of registers become rows of the gradient of queries; zero where no key was seen.  Four sums that lie side by side are
/// two columns of two rows, eight apart: the first one's team stores both.
template <class Element>
struct StoreQueryGradients {
  AttentionProblem      p;
  AttentionBackwardPlan plan;
  GradientOutput        to;
  bool                  in_pairs;  // columns
  int                   panels, halves;

  KOKKOS_FUNCTION void operator()(const RowPolicy<Kokkos::Cuda>::member_type& team) const {
    const std::int64_t batch = team.league_rank() / p.queries, row = team.league_rank() % p.queries;
    const auto         segment = [&](std::int64_t of_row) { return p.packed.segment(batch, of_row, of_row + 1, p.queries, p.keys); };
    const Segment      s       = segment(row);
    // Offsets that do not ascend may have put another sequence there.
    const auto is_partner = [&](std::int64_t other) {
      if (other < 0 || other >= p.queries) return false;
      const Segment of_other = segment(other);
      return of_other.sequence == s.sequence && of_other.first_query - s.first_query == other - row;
    };
    const int q = static_cast<int>(s.first_query % plan.queries);
    if (q % 16 >= 8 && is_partner(row - 8)) return;
    const bool         has_second = q % 16 < 8 && is_partner(row + 8);
    const std::int64_t slot       = plan.slot(batch, p.packed, row - s.first_query, s.sequence, s.first_query / plan.queries);
    const int          pairs = (p.head_dim + 1) / 2, r = q % 16 / 8;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, p.heads), [&](const std::int32_t head) {
      const std::int64_t at     = slot * p.heads + head;
      const bool         some   = s.keys > 0 && (!p.deterministic || plan.turns[at * halves] > 0);
      const float* const sums   = plan.sums + (at * (plan.queries / 64) + q / 64) * panels * gradient_part_floats;
      const std::int64_t to_row = batch * to.strides[0] + row * to.strides[1] + head * to.strides[2];
      Kokkos::parallel_for(Kokkos::ThreadVectorRange(team, pairs), [&](const std::int32_t pair) {
        const int    column = 2 * pair;
        const float4 four =
            *reinterpret_cast<const float4*>(sums + column / 64 * gradient_part_floats + place_in_part(q % 64 - 8 * r, column % 64));
        // Read before it is known whether anything was written there: then it is not used.
        const auto of = [&](float sum) { return some ? p.scale * sum : 0.0f; };
        store(to_row, column, of(r == 0 ? four.x : four.z), of(r == 0 ? four.y : four.w));
        if (has_second) store(to_row + 8 * to.strides[1], column, of(four.z), of(four.w));
      });
    });
  }

  /// Lanes have neighbouring columns.
  static RowPolicy<Kokkos::Cuda> policy(const Kokkos::Cuda& exec, const AttentionProblem& p) {
    return RowPolicy<Kokkos::Cuda>(exec, static_cast<int>(p.batch * p.queries), std::min(p.heads, 4), 32);
  }

 private:
  KOKKOS_INLINE_FUNCTION void store(std::int64_t row, std::int32_t column, float first, float second) const {
    if (in_pairs) {
      store_pair<Element>(to.is_float ? ElementType::float32 : element_type<Element>(), to.data, row, column, p.head_dim, first, second);
    } else {
      store_as<Element>(to.is_float, to.data, row + column, first);
      if (column + 1 < p.head_dim) store_as<Element>(to.is_float, to.data, row + column + 1, second);
    }
  }
};

}  // namespace Tributary::Impl::SM90
