#pragma once
#include "sm90/attention/gradient_scores.cuh"
#include "sm90/attention/gradient_tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/wgmma.cuh"

// Rows up to 128: a warpgroup's keys against the stream of queries.

namespace Tributary::Impl::SM90 {

/// Gradients of the keys and values of a warpgroup, and its panels of the gradients of queries.
template <class Tile>
class Differentiator {
 public:
  using Element = typename Tile::Element;

  __device__ Differentiator(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int warp, int lane)
      : call_(call), shared_(shared), scratch_(scratch), warp_(warp), lane_(lane) {}

  __device__ void run() {
    if (Tile::take_turns && group() == 1) ptx::bar_arrive(turn_of(0), 256);
    for (RingPosition<2> piece_at;; piece_at.next()) {
      ptx::mbarrier_wait(&shared_.piece_full[piece_at.slot], piece_at.round);
      const GradientPiece& piece = shared_.pieces[piece_at.slot];
      if (piece.batch < 0) break;
      differentiate(piece);
      release(&shared_.piece_empty[piece_at.slot]);
    }
  }

 private:
  static constexpr int sums = Tile::dim / 2, count = Tile::queries / 2;  // elements of a thread

  __device__ void differentiate(const GradientPiece& piece) {
    GradientScores<Tile> gradient(call_, piece, warp_ * 16, lane_);
    float                grad_key[sums], grad_value[sums];
#pragma unroll
    for (int i = 0; i < sums; ++i) grad_key[i] = grad_value[i] = 0.0f;
    const std::int32_t steps = steps_of(call_.problem, piece);
    if (steps > 0) {
      ptx::mbarrier_wait(has_rows_to_clean(call_.problem) ? &shared_.keys_clean : &shared_.keys_full, keys_round_);
      keys_round_ ^= 1;
      float              scores[count], gradients[count];
      GradientStep<Tile> step(call_.problem, piece);
      wait_for_queries();
      multiply_rows(scores, Tile::keys_offset, Tile::queries_offset);
      wait_for_grad_out();
      multiply_rows(gradients, Tile::values_offset, Tile::grad_out_offset);
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
    store(piece, call_.grad_key, grad_key, call_.problem.scale, call_.problem.head_dim);
    store(piece, call_.grad_value, grad_value, gradient.value_factor(), call_.problem.value_dim);
  }

  /// A step: from weights and products of values with gradients of outputs to the next step's.  No branch around a product: ptxas would
  /// serialise them all.
  template <bool Last>
  __device__ void differentiate(GradientScores<Tile>& gradient, const GradientPiece& piece, std::int32_t n, GradientStep<Tile>& step,
                                float (&scores)[count], float (&gradients)[count], float (&grad_key)[sums], float (&grad_value)[sums]) {
    const int     slot = stage_.slot;
    std::uint32_t weights[count / 2];
    float         grad_query[32];
    gradient.differentiate(scores, gradients, step, shared_.shift[slot], shared_.share[slot]);
    share(gradients);
    pack<Element>(scores, weights);
    stage_.next();
    if (n > 0) ptx::mbarrier_wait(&shared_.scores_full[query_score_at_.slot], query_score_at_.round);
    if constexpr (!Last) wait_for_queries();
    __syncwarp();
    ptx::bar_sync(turn_of(group()), Tile::take_turns ? 256 : 128);  // holds the warpgroup together, which reads what its warps shared
    // The step before's; the first one's is not used, keys stand for what nobody has shared yet.
    multiply_keys(grad_query, n > 0 ? scores_at(query_score_at_) : Tile::keys_offset);
    multiply_across(grad_value, weights, slot);
    multiply_shared(grad_key, slot);
    if constexpr (!Last) multiply_rows(scores, Tile::keys_offset, Tile::queries_offset);
    if constexpr (Tile::take_turns) ptx::bar_arrive(turn_of(1 - group()), 256);
    ptx::wgmma_wait_group<Last ? 2 : 3>();
    ptx::pin(grad_query);
    if (n > 0) finish_queries(grad_query, n - 1);
    ptx::wgmma_wait_group<Last ? 0 : 1>();
    ptx::pin(grad_value);
    ptx::pin(grad_key);
    release(&shared_.queries_empty[slot], &shared_.grad_out_empty[slot]);
    if constexpr (Last) {
      ptx::mbarrier_wait(&shared_.scores_full[query_score_at_.slot], query_score_at_.round);
      __syncwarp();
      multiply_keys(grad_query, scores_at(query_score_at_));
      ptx::wgmma_wait_group<0>();
      ptx::pin(grad_query);
      finish_queries(grad_query, n);
    } else {
      wait_for_grad_out();
      multiply_rows(gradients, Tile::values_offset, Tile::grad_out_offset);
      ptx::wgmma_wait_group<1>();
      ptx::pin(scores);
      step.next(piece);
      gradient.weigh(scores, step, shared_.lse[stage_.slot]);
      ptx::wgmma_wait_group<0>();
      ptx::pin(gradients);
    }
  }

  // Named barriers: whose turn it is to multiply.
  __device__ static int turn_of(int group) { return 1 + group; }

  __device__ int group() const { return warp_ / 4; }

  template <class... Barriers>
  __device__ void release(Barriers*... barriers) const {
    __syncwarp();
    if (lane_ == 0) (ptx::mbarrier_arrive(barriers), ...);
  }

  __device__ void wait_for_queries() const {
    ptx::mbarrier_wait(has_rows_to_clean(call_.problem) ? &shared_.queries_clean[stage_.slot] : &shared_.queries_full[stage_.slot],
                       stage_.round);
    __syncwarp();  // wgmma and its barriers want whole warps
  }
  __device__ void wait_for_grad_out() const {
    ptx::mbarrier_wait(has_rows_to_clean(call_.problem) ? &shared_.grad_out_clean[stage_.slot] : &shared_.grad_out_full[stage_.slot],
                       stage_.round);
    __syncwarp();
  }

  __device__ std::uint32_t address(int offset) const { return ptx::shared_address(scratch_) + static_cast<std::uint32_t>(offset); }

  /// products = the warpgroup's rows of keys or values x the stage's rows of queries or gradients of outputs; issued, not waited for.
  __device__ void multiply_rows(float (&products)[count], int rows, int columns) const {
    const std::uint64_t a = ptx::matrix_descriptor<128>(address(rows + group() * 64 * panel_row_bytes));
    const std::uint64_t b = ptx::matrix_descriptor<128>(address(columns + stage_.slot * Tile::query_bytes));
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::dim / 16; ++step) {
      const int panel = step / 4, in_panel = step % 4 * 2;  // addresses in units of 16 bytes
      ptx::Wgmma<Element, Tile::queries>::issue(products, a + static_cast<std::uint64_t>(panel * (Tile::key_panel_bytes / 16) + in_panel),
                                                b + static_cast<std::uint64_t>(panel * (Tile::query_panel_bytes / 16) + in_panel),
                                                step != 0);
    }
    ptx::wgmma_commit_group();
  }

  /// grad_value += weights x the stage's gradients of outputs; issued, not waited for.
  __device__ void multiply_across(float (&grad_value)[sums], const std::uint32_t (&weights)[count / 2], int slot) const {
    const std::uint64_t b = ptx::transposed_descriptor(address(Tile::grad_out_offset + slot * Tile::query_bytes), Tile::query_panel_bytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::queries / 16; ++step)
      ptx::WgmmaRegisterA<Element, Tile::dim>::issue(grad_value, weights + 4 * step,
                                                     b + static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16)));
    ptx::wgmma_commit_group();
  }

  /// grad_key += gradients of the warpgroup's scores, as shared, x the stage's queries; issued, not waited for.
  __device__ void multiply_shared(float (&grad_key)[sums], int slot) {
    const std::uint64_t a = ptx::matrix_descriptor<128>(address(scores_at(score_at_) + group() * 64 * panel_row_bytes));
    const std::uint64_t b = ptx::transposed_descriptor(address(Tile::queries_offset + slot * Tile::query_bytes), Tile::query_panel_bytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::queries / 16; ++step) {
      const int panel = step / 4, in_panel = step % 4 * 2;  // addresses in units of 16 bytes
      ptx::WgmmaAcrossB<Element, Tile::dim>::issue(grad_key,
                                                   a + static_cast<std::uint64_t>(panel * (Tile::key_panel_bytes / 16) + in_panel),
                                                   b + static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16)), true);
    }
    ptx::wgmma_commit_group();
    score_at_.next();
  }

  __device__ static int scores_at(const RingPosition<Tile::score_stages>& at) { return Tile::scores_offset + at.slot * Tile::score_bytes; }

  /// sum = gradients of the scores of all keys, from `scores` on, x keys, the warpgroup's part; issued, not waited for.
  __device__ void multiply_keys(float (&sum)[32], int scores) const {
    const int           part = Tile::parts == 1 ? 0 : group(), panel = part % Tile::panels;
    const std::uint64_t a =
        ptx::transposed_descriptor(address(scores + part / Tile::panels * Tile::key_panel_bytes), Tile::key_panel_bytes);
    const std::uint64_t b = ptx::transposed_descriptor(address(Tile::keys_offset + panel * Tile::key_panel_bytes), Tile::key_panel_bytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::keys / 16; ++step) {
      const auto across = static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16));
      ptx::WgmmaAcross<Element, 64>::issue(sum, a + across, b + across, step != 0);
    }
    ptx::wgmma_commit_group();
  }

  /// Gradients of scores for both warpgroups, swizzled as the copy engine would.
  __device__ void share(const float (&gradients)[count]) const {
    ptx::mbarrier_wait(&shared_.scores_empty[score_at_.slot], score_at_.round ^ 1);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_ * 16 + lane_ / 4 + 8 * r;
      const int to  = scores_at(score_at_) + row * panel_row_bytes + (row & 7) * 16 + lane_ % 4 * 4;
#pragma unroll
      for (int n = 0; n < Tile::queries / 8; ++n)
        *reinterpret_cast<std::uint32_t*>(scratch_ + ((to + n / 8 * Tile::key_panel_bytes) ^ (n % 8 * 16))) =
            two_of<Element>(gradients[4 * n + 2 * r], gradients[4 * n + 2 * r + 1]);
    }
    ptx::fence_proxy_async();
    release(&shared_.scores_full[score_at_.slot]);
  }

  /// Step n's gradients of scores are not needed any more, the gradient of its queries goes to the warps that add it up, in the order of
  /// registers.
  __device__ void finish_queries(float (&sum)[32], std::int32_t n) {
    release(&shared_.scores_empty[query_score_at_.slot]);
    query_score_at_.next();
    if (Tile::has_part(group(), n)) {
      ptx::mbarrier_wait(&shared_.sums_empty[group()], sums_round_ ^ 1);
      sums_round_ ^= 1;
      auto* const to =
          reinterpret_cast<float4*>(scratch_ + Tile::sums_offset) + group() * (gradient_part_floats / 4) + warp_ % 4 * 32 + lane_;
#pragma unroll
      for (int i = 0; i < 8; ++i) to[i * 128] = {sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]};
      ptx::fence_proxy_async();
      release(&shared_.sums_full[adder_at_.slot][group()]);
    }
    adder_at_.next();
  }

  __device__ void store(const GradientPiece& piece, const GradientOutput& to, const float (&sum)[sums], float factor,
                        std::int32_t columns) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_ * 16 + lane_ / 4 + 8 * r;
      if (row >= piece.keys) continue;
      const std::int64_t at = piece.batch * to.strides[0] + (piece.key_row + row) * to.strides[1] + piece.key_head * to.strides[2];
#pragma unroll
      for (int n = 0; n < Tile::dim / 8; ++n)
        store_pair<Element>(to.is_float, to.data, at, 8 * n + 2 * (lane_ % 4), columns, sum[4 * n + 2 * r] * factor,
                            sum[4 * n + 2 * r + 1] * factor);
    }
  }

  const AttentionBackwardCall&     call_;
  GradientShared<Tile>&            shared_;
  unsigned char*                   scratch_;
  const int                        warp_, lane_;
  RingPosition<Tile::query_stages> stage_, score_at_, query_score_at_;  // the next step's, to share, to multiply with keys
  RingPosition<Tile::adders>       adder_at_;
  std::uint32_t                    keys_round_ = 0, sums_round_ = 0;
};

}  // namespace Tributary::Impl::SM90
