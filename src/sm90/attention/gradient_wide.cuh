#pragma once
#include "sm90/attention/gradient_warp.cuh"

// Rows up to 256: a team's keys against the stream of queries, with half of the columns of their gradients for each warpgroup.
//
// The first warpgroup multiplies keys with queries and shares the weights, a step ahead; the second one multiplies values with gradients of
// outputs and shares the gradients of scores.  Both multiply what is shared with their columns of gradients of outputs and of queries.

namespace Tributary::Impl::SM90 {

template <class Tile>
class WideDifferentiator : GradientWarp<Tile> {
  using Base = GradientWarp<Tile>;

 public:
  using Element = typename Tile::Element;
  using Base::Base;

  __device__ void run() {
    if (group() == 0)
      this->for_each_piece([this](const GradientPiece& piece) { differentiate<MakerRole::weighs>(piece); });
    else
      this->for_each_piece([this](const GradientPiece& piece) { differentiate<MakerRole::differentiates>(piece); });
  }

 private:
  using Base::count;
  using Base::group;
  using Base::lane_;
  using Base::multiply_rows;
  using Base::release;
  using Base::shared_;
  using Base::sums;
  using Base::wait;

  static constexpr bool plain = Tile::scores == Scores::plain;

  template <MakerRole TheRole>
  __device__ void differentiate(const GradientPiece& piece) {
    GradientScores<Tile> gradient(this->call_, piece, this->first_row(), lane_);
    float                grad_key[sums], grad_value[sums];
#pragma unroll
    for (int i = 0; i < sums; ++i) grad_key[i] = grad_value[i] = 0.0f;
    const std::int32_t steps = steps_of(this->call_.problem, piece);
    if (steps > 0) {
      this->wait_for_keys();
      float              products[count];
      GradientStep<Tile> step(this->call_.problem, piece);
      if constexpr (TheRole == MakerRole::weighs) {
        this->wait_for_queries(query_at_);
        multiply_rows(products, Tile::keys_offset, Base::queries_at(query_at_.slot));
        ptx::wgmma_wait_group<0>();
        ptx::pin(products);
        gradient.weigh(products, step, shared_.lse[query_at_.slot]);
        share_weights(gradient, products, step, score_at_, shared_.share[query_at_.slot]);
      } else {
        this->wait_for_grad_out(grad_out_at_);
        multiply_rows(products, Tile::values_offset, Base::grad_out_at(grad_out_at_.slot));
        ptx::wgmma_wait_group<0>();
        ptx::pin(products);
      }
#pragma unroll 1
      for (std::int32_t n = 0; n + 1 < steps; ++n) take_step<TheRole, false>(gradient, piece, step, products, grad_key, grad_value);
      take_step<TheRole, true>(gradient, piece, step, products, grad_key, grad_value);
      release(&shared_.keys_empty);
    }
    this->store(piece, grad_key, grad_value, gradient.value_factor());
  }

  // No branch around a product in either step: ptxas would serialise them all.

  template <MakerRole TheRole, bool Last>
  __device__ void take_step(GradientScores<Tile>& gradient, const GradientPiece& piece, GradientStep<Tile>& step, float (&products)[count],
                            float (&grad_key)[sums], float (&grad_value)[sums]) {
    if constexpr (TheRole == MakerRole::weighs)
      weigh<Last>(gradient, piece, step, products, grad_key, grad_value);
    else
      make_gradients<Last>(gradient, piece, step, products, grad_key, grad_value);
    query_at_.next();
    grad_out_at_.next();
    score_at_.next();
  }

  /// The first warpgroup's step: its weights are shared already, the next one's will be.
  template <bool Last>
  __device__ void weigh(GradientScores<Tile>& gradient, const GradientPiece& piece, GradientStep<Tile>& step, float (&scores)[count],
                        float (&grad_key)[sums], float (&grad_value)[sums]) {
    RingPosition<Tile::query_stages> next_query_at = query_at_;
    next_query_at.next();
    this->wait_for_grad_out(grad_out_at_);
    wait(shared_.weights_full, score_at_);
    multiply_shared(grad_value, Tile::weights_place, Base::grad_out_at(grad_out_at_.slot));
    if constexpr (!Last) {
      this->wait_for_queries(next_query_at);
      multiply_rows(scores, Tile::keys_offset, Base::queries_at(next_query_at.slot));
    }
    ptx::wgmma_wait_group<Last ? 0 : 1>();
    ptx::pin(grad_value);
    release(&shared_.weights_empty[score_at_.slot], &shared_.grad_out_empty[grad_out_at_.slot]);
    if constexpr (!Last) {
      ptx::wgmma_wait_group<0>();
      ptx::pin(scores);
    }
    wait(shared_.scores_full, score_at_);
    multiply_shared(grad_key, Tile::gradients_place, Base::queries_at(query_at_.slot));
    if constexpr (!Last) {
      step.next(piece);
      gradient.weigh(scores, step, shared_.lse[next_query_at.slot]);
    }
    ptx::wgmma_wait_group<0>();
    ptx::pin(grad_key);
    release(&shared_.queries_empty[query_at_.slot], &shared_.scores_empty[score_at_.slot]);
    if constexpr (!Last) {
      RingPosition<Tile::score_stages> next_score_at = score_at_;
      next_score_at.next();
      share_weights(gradient, scores, step, next_score_at, shared_.share[next_query_at.slot]);
    }
  }

  /// The second warpgroup's step: from its products of values and gradients of outputs to the next step's.
  template <bool Last>
  __device__ void make_gradients(GradientScores<Tile>& gradient, const GradientPiece& piece, GradientStep<Tile>& step,
                                 float (&gradients)[count], float (&grad_key)[sums], float (&grad_value)[sums]) {
    this->wait_for_queries(query_at_);
    wait(shared_.weights_full, score_at_);
    multiply_shared(grad_value, Tile::weights_place, Base::grad_out_at(grad_out_at_.slot));
    std::uint32_t weights[count / 2];
#pragma unroll
    for (int i = 0; i < count / 2; ++i) weights[i] = *this->word(Base::scores_at(score_at_.slot) + Tile::slopes_place, i);
    gradient.differentiate(
        gradients, [&](int i) { return one_of<Element>(weights[i / 2], i % 2); }, step, shared_.shift[query_at_.slot],
        shared_.share[query_at_.slot]);
    ptx::mbarrier_wait(&shared_.scores_empty[score_at_.slot], score_at_.round ^ 1);
    store_rounded(gradients, Base::scores_at(score_at_.slot) + Tile::gradients_place);
    ptx::fence_proxy_async();
    release(&shared_.scores_full[score_at_.slot]);
    wait(shared_.scores_full, score_at_);
    multiply_shared(grad_key, Tile::gradients_place, Base::queries_at(query_at_.slot));
    if constexpr (!Last) {
      RingPosition<Tile::grad_out_stages> next_grad_out_at = grad_out_at_;
      next_grad_out_at.next();
      this->wait_for_grad_out(next_grad_out_at);
      multiply_rows(gradients, Tile::values_offset, Base::grad_out_at(next_grad_out_at.slot));
      step.next(piece);
    }
    ptx::wgmma_wait_group<Last ? 1 : 2>();
    ptx::pin(grad_value);
    release(&shared_.weights_empty[score_at_.slot], &shared_.grad_out_empty[grad_out_at_.slot]);
    ptx::wgmma_wait_group<Last ? 0 : 1>();
    ptx::pin(grad_key);
    release(&shared_.queries_empty[query_at_.slot], &shared_.scores_empty[score_at_.slot]);
    ptx::wgmma_wait_group<0>();
    ptx::pin(gradients);
  }

  /// sum += what is shared at `place`, a row a key, x the warpgroup's columns of `rows`; issued, not waited for.
  __device__ void multiply_shared(float (&sum)[sums], int place, int rows) const {
    const int           columns_at = rows + group() * (Tile::panels / 2) * Tile::query_panel_bytes;
    const std::uint64_t a          = ptx::matrix_descriptor<128>(this->address(Base::scores_at(score_at_.slot) + place));
    const std::uint64_t b          = ptx::transposed_descriptor(this->address(columns_at), Tile::query_panel_bytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::queries / 16; ++step) {
      const int panel = step / 4, in_panel = step % 4 * 2;
      ptx::WgmmaAcrossB<Element, Base::columns>::issue(sum, a + static_cast<std::uint64_t>(panel * (Tile::key_panel_bytes / 16) + in_panel),
                                                       b + static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16)), true);
    }
    ptx::wgmma_commit_group();
  }
  __device__ void store_rounded(const float (&values)[count], int to) const {
#pragma unroll
    for (int i = 0; i < count / 2; ++i) *this->word(to, i) = two_of<Element>(values[2 * i], values[2 * i + 1]);
  }
  __device__ void share_weights(GradientScores<Tile>& gradient, float (&weights)[count], const GradientStep<Tile>& step,
                                const RingPosition<Tile::score_stages>& at, const float* share) const {
    ptx::mbarrier_wait(&shared_.weights_empty[at.slot], at.round ^ 1);
    if constexpr (!plain) {
      float of_slopes[count];
      gradient.split(weights, of_slopes, step, share);
      store_rounded(of_slopes, Base::scores_at(at.slot) + Tile::slopes_place);
    }
    store_rounded(weights, Base::scores_at(at.slot) + Tile::weights_place);
    ptx::fence_proxy_async();
    release(&shared_.weights_full[at.slot]);
  }

  RingPosition<Tile::query_stages>    query_at_;
  RingPosition<Tile::grad_out_stages> grad_out_at_;
  RingPosition<Tile::score_stages>    score_at_;
};

}  // namespace Tributary::Impl::SM90
