#pragma once
#include "sm90/attention/gradient_warp.cuh"

// Rows up to 128: a warpgroup's keys against the stream of queries.

namespace Tributary::Impl::SM90 {

/// Gradients of the keys and values of a warpgroup, and its panels of the gradients of queries.
template <class Tile>
class Differentiator : GradientWarp<Tile> {
  using Base = GradientWarp<Tile>;

 public:
  using Element = typename Tile::Element;
  using Base::Base;

  __device__ void run() {
    if (group() == 1) end_turn();  // the other one has the first turn
    this->for_each_piece([this](const GradientPiece& piece) { differentiate(piece); });
  }

 private:
  using Base::count;
  using Base::grad_out_at;
  using Base::group;
  using Base::lane_;
  using Base::queries_at;
  using Base::release;
  using Base::scores_at;
  using Base::shared_;
  using Base::sums;

  __device__ void differentiate(const GradientPiece& piece) {
    GradientScores<Tile> gradient(this->call_, piece, this->first_row(), lane_);
    float                grad_key[sums], grad_value[sums];
#pragma unroll
    for (int i = 0; i < sums; ++i) grad_key[i] = grad_value[i] = 0.0f;
    const std::int32_t steps = steps_of(this->call_.problem, piece);
    if (steps > 0) {
      this->wait_for_keys();
      float              scores[count], gradients[count];
      GradientStep<Tile> step(this->call_.problem, piece);
      this->wait_for_queries(stage_);
      multiply_rows(scores, Tile::keys_offset, queries_at(stage_.slot));
      this->wait_for_grad_out(stage_);
      multiply_rows(gradients, Tile::values_offset, grad_out_at(stage_.slot));
      ptx::wgmma_wait_group<1>();
      ptx::pin(scores);
      gradient.weigh(scores, step, shared_.lse[stage_.slot]);
      ptx::wgmma_wait_group<0>();
      ptx::pin(gradients);
#pragma unroll 1
      for (std::int32_t n = 0; n + 1 < steps; ++n) differentiate<false>(gradient, piece, n, step, scores, gradients, grad_key, grad_value);
      differentiate<true>(gradient, piece, steps - 1, step, scores, gradients, grad_key, grad_value);
      release(&shared_.keys_empty);
    }
    this->store(piece, grad_key, grad_value, gradient.value_factor());
  }

  /// A step: from weights and products of values with gradients of outputs to the next step's.  Its sums of gradients are multiplied at
  /// the warpgroup's turn; without turns both would make weights and gradients of scores at the same time, with the tensor cores idle.  No
  /// branch around a product: ptxas would serialise them all.
  template <bool Last>
  __device__ void differentiate(GradientScores<Tile>& gradient, const GradientPiece& piece, std::int32_t n, GradientStep<Tile>& step,
                                float (&scores)[count], float (&gradients)[count], float (&grad_key)[sums], float (&grad_value)[sums]) {
    const int     slot = stage_.slot;
    std::uint32_t weights[count / 2], slopes[count / 2];
    float         grad_query[32];
    gradient.differentiate(scores, gradients, step, shared_.shift[slot], shared_.share[slot]);
    pack<Element>(gradients, slopes);
    share(slopes);
    pack<Element>(scores, weights);
    stage_.next();
    wait_for_turn();
    multiply_before(n, grad_query);
    this->multiply_across(grad_value, weights, grad_out_at(slot));
    this->multiply_across(grad_key, slopes, queries_at(slot));
    ptx::wgmma_wait_group<2>();
    ptx::pin(grad_query);
    if (n > 0) finish_queries(grad_query, n - 1);
    if constexpr (!Last) this->wait_for_queries(stage_);
    ptx::wgmma_wait_group<0>();
    ptx::pin(grad_value);
    ptx::pin(grad_key);
    end_turn();
    if constexpr (!Last) multiply_rows(scores, Tile::keys_offset, queries_at(stage_.slot));
    release(&shared_.queries_empty[slot], &shared_.grad_out_empty[slot]);
    if constexpr (Last) {
      multiply_before(n + 1, grad_query);
      ptx::wgmma_wait_group<0>();
      ptx::pin(grad_query);
      finish_queries(grad_query, n);
    } else {
      this->wait_for_grad_out(stage_);
      multiply_rows(gradients, Tile::values_offset, grad_out_at(stage_.slot));
      ptx::wgmma_wait_group<1>();
      ptx::pin(scores);
      step.next(piece);
      gradient.weigh(scores, step, shared_.lse[stage_.slot]);
      ptx::wgmma_wait_group<0>();
      ptx::pin(gradients);
    }
  }

  // Named barriers: which warpgroup may multiply gradients of queries, values and keys.
  __device__ static int products_turn(int group) { return 1 + group; }

  __device__ void wait_for_turn() const {
    __syncwarp();
    ptx::bar_sync(products_turn(group()), 32 * Tile::math_warps);
  }
  __device__ void end_turn() const {
    __syncwarp();
    ptx::bar_arrive(products_turn(1 - group()), 32 * Tile::math_warps);
  }

  /// The gradient of the queries of the step before step n.  Before the first one keys stand for what nobody has shared, and nothing is
  /// made of the product: with a branch around it ptxas would serialise all.
  __device__ void multiply_before(std::int32_t n, float (&grad_query)[32]) const {
    if (n > 0) ptx::mbarrier_wait(&shared_.scores_full[query_score_at_.slot], query_score_at_.round);
    __syncwarp();
    multiply_keys(grad_query, n > 0 ? scores_at(query_score_at_.slot) : Tile::keys_offset);
  }

  /// Where the warpgroup's rows of keys, values or shared scores begin.
  __device__ int group_rows() const { return group() * 64 * panel_row_bytes; }

  /// products = the warpgroup's rows of keys or values x rows of queries or gradients of outputs; issued, not waited for.
  __device__ void multiply_rows(float (&products)[count], int rows, int query_rows) const {
    Base::multiply_rows(products, rows + group_rows(), query_rows);
  }

  /// sum = gradients of the scores of all keys, from `scores` on, x keys, the warpgroup's part; issued, not waited for.
  __device__ void multiply_keys(float (&sum)[32], int scores) const {
    const int part = Tile::parts == 1 ? 0 : group();
    Base::multiply_keys(sum, scores + part / Tile::panels * Tile::key_panel_bytes, part % Tile::panels);
  }

  /// Gradients of scores for both warpgroups.
  __device__ void share(const std::uint32_t (&gradients)[count / 2]) {
    ptx::mbarrier_wait(&shared_.scores_empty[score_at_.slot], score_at_.round ^ 1);
    __syncwarp();
    this->store_words(scores_at(score_at_.slot), gradients);
    ptx::fence_proxy_async();
    release(&shared_.scores_full[score_at_.slot]);
    score_at_.next();
  }

  /// Step n's gradients of scores are not needed any more, the gradient of its queries goes to the warps that add it up.
  __device__ void finish_queries(const float (&sum)[32], std::int32_t n) {
    release(&shared_.scores_empty[query_score_at_.slot]);
    query_score_at_.next();
    if (Tile::has_part(group(), n)) this->hand_over(sum, adder_at_.slot);
    adder_at_.next();
  }

  RingPosition<Tile::query_stages> stage_;                      // the next step's
  RingPosition<Tile::score_stages> score_at_, query_score_at_;  // to share, to multiply with keys
  RingPosition<Tile::adders>       adder_at_;
};

}  // namespace Tributary::Impl::SM90
