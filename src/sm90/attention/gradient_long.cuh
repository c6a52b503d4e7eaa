#pragma once
#include "sm90/attention/gradient_crew.cuh"
#include "sm90/attention/gradient_load.cuh"
#include "sm90/attention/gradient_warp.cuh"

// Rows up to 512: a maker's keys, or their values, against the stream of queries and gradients of outputs.
//
// A register file holds the gradients of 64 keys or of 64 values.  So makers come in pairs.  The one that weighs has the keys: it
// multiplies them with queries, makes weights, and sums up gradients of outputs with them, the gradients of values.  The one that
// differentiates has the values: it multiplies them with gradients of outputs, makes gradients of scores of these and the other one's
// weights, and sums up queries with them, the gradients of keys.  Both do the same: rows are multiplied, what is made of the products sums
// up other rows.  The first warpgroup makes it and sums half of the columns; the second one takes it and sums the other half.

namespace Tributary::Impl::SM90 {

/// What rows that pass by are for; of either kind a place for each half of the columns.
enum class RowUse { products, sums };

template <class Tile>
__device__ constexpr int long_rows_at(RowUse use, int half) {
  return Tile::rows_offset + static_cast<int>(use) * Tile::query_bytes + half * (Tile::query_bytes / 2);
}

/// A warp: loads the maker's keys or values, and the rows.
template <class Tile>
class LongLoader : GradientLoader<Tile> {
  using Base = GradientLoader<Tile>;

 public:
  using Base::Base;

  template <class Next>
  __device__ void run(const Next& next, int first_key) {
    Base::run(next, first_key, [this](const GradientPiece& piece) { load(piece); });
  }

 private:
  using Base::call_;
  using Base::lane_;
  using Base::scratch_;
  using Base::shared_;

  __device__ void load(const GradientPiece& piece) {
    if (piece.query_tiles == 0) return;
    ptx::mbarrier_wait(&shared_.keys_empty, this->keys_round_ ^ 1);
    this->keys_round_ ^= 1;
    const GradientMaps* const maps = call_.maps();
    if (lane_ == 0) {
      ptx::mbarrier_arrive_expect_tx(&shared_.keys_full, Tile::key_bytes);
      for (int panel = 0; panel < Tile::panels; ++panel)
        Base::copy(scratch_ + Tile::keys_offset + panel * Tile::key_panel_bytes, Tile::weighs ? &maps->key : &maps->value,
                   &shared_.keys_full, panel, piece.key_head, piece.key_row, piece.batch);
    }
    __syncwarp();
    GradientStep<Tile> step(call_.problem, piece);
    for (std::int32_t n = steps_of(call_.problem, piece); n > 0; --n, step.next(piece), round_ ^= 1) {
      const typename Base::Known known(call_, piece, step, lane_);
      wait_for_place(RowUse::products, 0);
      known.put(shared_, static_cast<int>(round_), lane_);
      __syncwarp();
      if (lane_ == 0) {  // alone: nothing holds the warp together until the other places are free again
        const CUtensorMap* const to_multiply = Tile::weighs ? &maps->query : &maps->grad_out;
        const CUtensorMap* const to_sum      = Tile::weighs ? &maps->grad_out : &maps->query;
        ptx::mbarrier_arrive(&shared_.rows_full[0][0]);
        copy_rows(RowUse::products, 0, to_multiply, piece, step);
        wait_for_place(RowUse::products, 1);
        copy_rows(RowUse::products, 1, to_multiply, piece, step);
        for (int half = 0; half < 2; ++half) {
          wait_for_place(RowUse::sums, half);
          copy_rows(RowUse::sums, half, to_sum, piece, step);
        }
      }
      __syncwarp();
    }
  }

  __device__ void wait_for_place(RowUse use, int half) const {
    ptx::mbarrier_wait(&shared_.rows_empty[static_cast<int>(use)][half], round_ ^ 1);
  }

  __device__ void copy_rows(RowUse use, int half, const CUtensorMap* map, const GradientPiece& piece,
                            const GradientStep<Tile>& step) const {
    std::uint64_t* const full = &shared_.rows_full[static_cast<int>(use)][half];
    ptx::mbarrier_arrive_expect_tx(full, Tile::query_bytes / 2);
    for (int panel = 0; panel < Tile::panels / 2; ++panel)
      Base::copy(scratch_ + long_rows_at<Tile>(use, half) + panel * Tile::query_panel_bytes, map, full, half * (Tile::panels / 2) + panel,
                 step.head, piece.query_row + step.first_query(), piece.batch);
  }

  std::uint32_t round_ = 0;
};

/// A warp: zeroes what does not take part, as clean_tiles does.
template <class Tile>
__device__ void clean_long_tiles(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int lane) {
  std::uint32_t round = 0;
  clean_keys(call, shared, scratch, lane, {Tile::keys_offset}, [&](const GradientPiece& piece) {
    GradientStep<Tile> step(call.problem, piece);
    for (std::int32_t n = steps_of(call.problem, piece); n > 0; --n, round ^= 1, step.next(piece))
      for (const RowUse use : {RowUse::products, RowUse::sums})
        for (int half = 0; half < 2; ++half) {
          ptx::mbarrier_wait(&shared.rows_full[static_cast<int>(use)][half], round);
          clean_rows(scratch + long_rows_at<Tile>(use, half), Tile::queries, Tile::panels / 2, lane,
                     [&](int r) { return step.first_query() + r < piece.sequence_queries; });
          arrive_clean(&shared.rows_clean[static_cast<int>(use)][half], lane);
        }
  });
}

/// Brings the weights to the team that differentiates; a thread.
template <class Tile>
__device__ void fetch_weights(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch,
                              const CrewSeat& seat) {
  const int       maker = seat.part();
  RingPosition<1> weights_at;
  std::uint32_t   fetched = 0, seen = 0;  // steps; seen: that the maker has shared
  for (RingPosition<2> piece_at;; piece_at.next()) {
    ptx::mbarrier_wait(&shared.piece_full[piece_at.slot], piece_at.round);
    const GradientPiece& piece = shared.pieces[piece_at.slot];
    if (piece.batch < 0) return;
    for (std::int32_t n = steps_of(call.problem, piece); n > 0; --n, weights_at.next()) {
      if (seen == fetched) {  // never fewer
        while ((seen = static_cast<std::uint32_t>(ptx::ld_acquire(&seat.state->shared[maker]))) == fetched) __nanosleep(20);
        ptx::fence_proxy_async_global();
      }
      ptx::mbarrier_wait(&shared.weights_empty[0], weights_at.round ^ 1);
      ptx::mbarrier_arrive_expect_tx(&shared.weights_full[0], Tile::score_bytes);
      ptx::cp_async_bulk(scratch + Tile::weights_offset, seat.place(maker, fetched), Tile::score_bytes, &shared.weights_full[0]);
      ptx::st_release(&seat.state->weights_taken[maker], static_cast<std::int32_t>(fetched));  // those before have been read
      ++fetched;
    }
    ptx::mbarrier_arrive(&shared.piece_empty[piece_at.slot]);
  }
}

/// A math warp.
template <class Tile>
class LongDifferentiator : GradientWarp<Tile> {
  using Base = GradientWarp<Tile>;

 public:
  using Element = typename Tile::Element;
  using Base::Base;

  __device__ void run() {
    if (group() == 0)
      this->for_each_piece([this](const GradientPiece& piece) { make_and_sum(piece); });
    else
      this->for_each_piece([this](const GradientPiece& piece) { take_and_sum(piece); });
  }

 private:
  using Base::call_;
  using Base::count;
  using Base::group;
  using Base::lane_;
  using Base::release;
  using Base::shared_;
  using Base::sums;

  static constexpr int words = count / 2;

  /// The first warpgroup: makes what sums take, shares it, and sums.
  __device__ void make_and_sum(const GradientPiece& piece) {
    GradientScores<Tile> gradient(call_, piece, this->first_row(), lane_);
    float                sum[sums];
#pragma unroll
    for (int i = 0; i < sums; ++i) sum[i] = 0.0f;
    const std::int32_t steps = steps_of(call_.problem, piece);
    if (steps > 0) {
      this->wait_for_keys();
      GradientStep<Tile> step(call_.problem, piece);
#pragma unroll 1
      for (std::int32_t n = 0; n < steps; ++n, step.next(piece)) {
        float         products[count];
        std::uint32_t factors[words];
        multiply_rows(products);
        ptx::wgmma_wait_group<1>();
        release(&shared_.rows_empty[0][0]);
        ptx::wgmma_wait_group<0>();
        ptx::pin(products);
        release(&shared_.rows_empty[0][1]);
        differentiate(gradient, products, step);
        pack<Element>(products, factors);
        share(Tile::scores_offset, factors, shared_.scores_full, shared_.scores_empty, score_at_);
        multiply_sums(sum, factors);
        ptx::wgmma_wait_group<0>();
        ptx::pin(sum);
        release(&shared_.rows_empty[1][0]);
      }
      release(&shared_.keys_empty);
    }
    store(piece, sum);
  }

  /// The second warpgroup.
  __device__ void take_and_sum(const GradientPiece& piece) {
    float sum[sums];
#pragma unroll
    for (int i = 0; i < sums; ++i) sum[i] = 0.0f;
#pragma unroll 1
    for (std::int32_t n = steps_of(call_.problem, piece); n > 0; --n, score_at_.next()) {
      this->wait(shared_.scores_full, score_at_);
      std::uint32_t factors[words];
#pragma unroll
      for (int i = 0; i < words; ++i) factors[i] = *this->word(Base::scores_at(score_at_.slot), i);
      multiply_sums(sum, factors);
      ptx::wgmma_wait_group<0>();
      ptx::pin(sum);
      release(&shared_.scores_empty[score_at_.slot], &shared_.rows_empty[1][1]);
    }
    store(piece, sum);
  }

  /// Products become what sums take: weights, or gradients of scores.
  __device__ void differentiate(GradientScores<Tile>& gradient, float (&products)[count], const GradientStep<Tile>& step) {
    const auto known = static_cast<int>(products_round_);
    products_round_ ^= 1;
    if constexpr (Tile::weighs) {
      gradient.weigh(products, step, shared_.lse[known]);
      if constexpr (Tile::hands_weights_over) {
        float of_slopes[count];
        gradient.split(products, of_slopes, step, shared_.share[known]);
        std::uint32_t other[words];
        pack<Element>(of_slopes, other);
        share(Tile::weights_offset, other, shared_.weights_full, shared_.weights_empty, weights_at_);
      }
    } else {
      this->wait(shared_.weights_full, weights_at_);
      std::uint32_t weights[words];
#pragma unroll
      for (int i = 0; i < words; ++i) weights[i] = *this->word(Tile::weights_offset, i);
      ptx::fence_proxy_async();  // the next ones may come before these have been read
      release(&shared_.weights_empty[0]);
      gradient.differentiate(
          products, [&](int i) { return one_of<Element>(weights[i / 2], i % 2); }, step, shared_.shift[known], shared_.share[known]);
      weights_at_.next();
    }
  }

  /// Words for others, in the next of the places from `first_place` on.
  template <int Stages>
  __device__ void share(int first_place, const std::uint32_t (&of_scores)[words], std::uint64_t (&full)[Stages],
                        std::uint64_t (&empty)[Stages], RingPosition<Stages>& at) const {
    ptx::mbarrier_wait(&empty[at.slot], at.round ^ 1);
    __syncwarp();
    this->store_words(first_place + at.slot * Tile::score_bytes, of_scores);
    ptx::fence_proxy_async();
    release(&full[at.slot]);
    at.next();
  }

  __device__ void wait_for_rows(RowUse use, int half, std::uint32_t round) const {
    const int which = static_cast<int>(use);
    ptx::mbarrier_wait(Base::cleans() ? &shared_.rows_clean[which][half] : &shared_.rows_full[which][half], round);
    __syncwarp();
  }

  /// products = keys or values x rows; issued, not waited for.
  __device__ void multiply_rows(float (&products)[count]) const {
    constexpr int panels = Tile::panels / 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      wait_for_rows(RowUse::products, half, products_round_);
      Base::template multiply_rows<panels>(products, Tile::keys_offset + half * panels * Tile::key_panel_bytes,
                                           long_rows_at<Tile>(RowUse::products, half), half != 0);
    }
  }

  /// sum += factors, a row a key, x the warpgroup's columns of the rows; issued, not waited for.
  __device__ void multiply_sums(float (&sum)[sums], const std::uint32_t (&factors)[words]) {
    wait_for_rows(RowUse::sums, group(), sums_round_);
    sums_round_ ^= 1;
    this->multiply_across(sum, factors, long_rows_at<Tile>(RowUse::sums, group()));
  }

  __device__ void store(const GradientPiece& piece, const float (&sum)[sums]) const {
    const AttentionProblem& p = call_.problem;
    if constexpr (Tile::weighs)
      Base::store(piece, call_.grad_value, sum, GradientScores<Tile>::value_factor(p), p.value_dim);
    else
      Base::store(piece, call_.grad_key, sum, p.scale, p.head_dim);
  }

  std::uint32_t                    products_round_ = 0, sums_round_ = 0;  // rounds of rows; the former, too: where their numbers are
  RingPosition<Tile::score_stages> score_at_;
  RingPosition<1>                  weights_at_;
};

}  // namespace Tributary::Impl::SM90
