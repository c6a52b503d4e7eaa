#pragma once
#include "sm90/attention/gradient_scores.cuh"
#include "sm90/attention/gradient_tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/wgmma.cuh"

// Rows up to 256: the keys of a block against the stream of queries, with half of the columns of every gradient for each warpgroup.
//
// The first warpgroup multiplies keys with queries and shares the weights, a step ahead; the second one multiplies values with gradients of
// outputs and shares the gradients of scores.  Both multiply what is shared with their columns of gradients of outputs, queries and keys.

namespace Tributary::Impl::SM90 {

template <class Tile>
class WideDifferentiator {
 public:
  using Element = typename Tile::Element;

  __device__ WideDifferentiator(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int warp, int lane)
      : call_(call), shared_(shared), scratch_(scratch), warp_(warp), lane_(lane) {}

  __device__ void run() {
    if (group() == 0)
      run_as<Role::weighs>();
    else
      run_as<Role::differentiates>();
  }

 private:
  enum class Role { weighs, differentiates };

  static constexpr int  count = Tile::queries / 2, sums = Tile::dim / 4;  // elements of a thread
  static constexpr bool plain = Tile::scores == Scores::plain;

  template <Role TheRole>
  __device__ void run_as() {
    for (RingPosition<2> piece_at;; piece_at.next()) {
      ptx::mbarrier_wait(&shared_.piece_full[piece_at.slot], piece_at.round);
      const GradientPiece& piece = shared_.pieces[piece_at.slot];
      if (piece.batch < 0) break;
      differentiate<TheRole>(piece);
      release(&shared_.piece_empty[piece_at.slot]);
    }
  }

  template <Role TheRole>
  __device__ void differentiate(const GradientPiece& piece) {
    GradientScores<Tile> gradient(call_, piece, warp_ % 4 * 16, lane_);
    float                grad_key[sums], grad_value[sums];
#pragma unroll
    for (int i = 0; i < sums; ++i) grad_key[i] = grad_value[i] = 0.0f;
    const std::int32_t steps = steps_of(call_.problem, piece);
    if (steps > 0) {
      ptx::mbarrier_wait(cleans() ? &shared_.keys_clean : &shared_.keys_full, keys_round_);
      keys_round_ ^= 1;
      float              products[count];
      GradientStep<Tile> step(call_.problem, piece);
      if constexpr (TheRole == Role::weighs) {
        wait_for_queries();
        multiply_rows(products, Tile::keys_offset, queries());
        ptx::wgmma_wait_group<0>();
        ptx::pin(products);
        gradient.weigh(products, step, shared_.lse[query_at_.slot]);
        share_weights(gradient, products, step);
      } else {
        wait_for_grad_out();
        multiply_rows(products, Tile::values_offset, grad_out());
        ptx::wgmma_wait_group<0>();
        ptx::pin(products);
      }
#pragma unroll 1
      for (std::int32_t n = 0; n + 1 < steps; ++n) take_step<TheRole, false>(gradient, piece, step, products, grad_key, grad_value);
      take_step<TheRole, true>(gradient, piece, step, products, grad_key, grad_value);
      release(&shared_.keys_empty);
    }
    store(piece, call_.grad_key, grad_key, call_.problem.scale, call_.problem.head_dim);
    store(piece, call_.grad_value, grad_value, gradient.value_factor(), call_.problem.value_dim);
  }

  // No branch around a product in either step: ptxas would serialise them all.

  template <Role TheRole, bool Last>
  __device__ void take_step(GradientScores<Tile>& gradient, const GradientPiece& piece, GradientStep<Tile>& step, float (&products)[count],
                            float (&grad_key)[sums], float (&grad_value)[sums]) {
    if constexpr (TheRole == Role::weighs)
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
    const RingPosition<Tile::query_stages> query_at = query_at_;
    const RingPosition<Tile::score_stages> score_at = score_at_;
    wait_for_grad_out();
    wait(shared_.weights_full, score_at_);
    multiply_shared(grad_value, Tile::weights_place, grad_out());  // first: the only place for gradients of outputs is free then
    if constexpr (!Last) {
      query_at_.next();
      wait_for_queries();
      multiply_rows(scores, Tile::keys_offset, queries());
    }
    ptx::wgmma_wait_group<Last ? 0 : 1>();
    ptx::pin(grad_value);
    release(&shared_.weights_empty[score_at_.slot], &shared_.grad_out_empty[grad_out_at_.slot]);
    if constexpr (!Last) {
      ptx::wgmma_wait_group<0>();
      ptx::pin(scores);
      step.next(piece);
      gradient.weigh(scores, step, shared_.lse[query_at_.slot]);
      score_at_.next();
      share_weights(gradient, scores, step);
    }
    query_at_ = query_at;
    score_at_ = score_at;
    wait(shared_.scores_full, score_at_);
    float grad_query[2][32];
    multiply_shared(grad_key, Tile::gradients_place, queries());
    multiply_keys(grad_query[0], 0);
    multiply_keys(grad_query[1], 1);
    ptx::wgmma_wait_group<2>();
    ptx::pin(grad_key);
    release(&shared_.queries_empty[query_at_.slot]);
    ptx::wgmma_wait_group<1>();
    ptx::pin(grad_query[0]);
    hand_over(grad_query[0]);
    ptx::wgmma_wait_group<0>();
    ptx::pin(grad_query[1]);
    release(&shared_.scores_empty[score_at_.slot]);
    hand_over(grad_query[1]);
  }

  /// The second warpgroup's step: from its products of values and gradients of outputs to the next step's.
  template <bool Last>
  __device__ void make_gradients(GradientScores<Tile>& gradient, const GradientPiece& piece, GradientStep<Tile>& step,
                                 float (&gradients)[count], float (&grad_key)[sums], float (&grad_value)[sums]) {
    wait_for_queries();
    wait(shared_.weights_full, score_at_);
    multiply_shared(grad_value, Tile::weights_place, grad_out());
    std::uint32_t weights[count / 2];
    load_words(weights, Tile::slopes_place);
    gradient.differentiate(
        gradients, [&](int i) { return one_of<Element>(weights[i / 2], i % 2); }, step, shared_.shift[query_at_.slot],
        shared_.share[query_at_.slot]);
    ptx::mbarrier_wait(&shared_.scores_empty[score_at_.slot], score_at_.round ^ 1);
    store_words(gradients, Tile::gradients_place);
    ptx::fence_proxy_async();
    release(&shared_.scores_full[score_at_.slot]);
    wait(shared_.scores_full, score_at_);
    float grad_query[2][32];
    multiply_shared(grad_key, Tile::gradients_place, queries());
    multiply_keys(grad_query[0], 0);
    multiply_keys(grad_query[1], 1);
    ptx::wgmma_wait_group<3>();
    ptx::pin(grad_value);
    release(&shared_.weights_empty[score_at_.slot], &shared_.grad_out_empty[grad_out_at_.slot]);
    ptx::wgmma_wait_group<2>();
    ptx::pin(grad_key);
    release(&shared_.queries_empty[query_at_.slot]);
    ptx::wgmma_wait_group<1>();
    ptx::pin(grad_query[0]);
    hand_over(grad_query[0]);
    if constexpr (!Last) {
      const RingPosition<Tile::grad_out_stages> grad_out_at = grad_out_at_;
      grad_out_at_.next();
      wait_for_grad_out();
      multiply_rows(gradients, Tile::values_offset, grad_out());
      grad_out_at_ = grad_out_at;
      step.next(piece);
    }
    ptx::wgmma_wait_group<Last ? 0 : 1>();
    ptx::pin(grad_query[1]);
    release(&shared_.scores_empty[score_at_.slot]);
    hand_over(grad_query[1]);
    ptx::wgmma_wait_group<0>();
    ptx::pin(gradients);
  }

  __device__ int  group() const { return warp_ / 4; }
  __device__ bool cleans() const { return has_rows_to_clean(call_.problem); }

  template <class... Barriers>
  __device__ void release(Barriers*... barriers) const {
    __syncwarp();
    if (lane_ == 0) (ptx::mbarrier_arrive(barriers), ...);
  }
  /// wgmma wants whole warps.
  template <int Stages>
  __device__ void wait(std::uint64_t (&barriers)[Stages], const RingPosition<Stages>& at) const {
    ptx::mbarrier_wait(&barriers[at.slot], at.round);
    __syncwarp();
  }
  __device__ void wait_for_queries() const { wait(cleans() ? shared_.queries_clean : shared_.queries_full, query_at_); }
  __device__ void wait_for_grad_out() const { wait(cleans() ? shared_.grad_out_clean : shared_.grad_out_full, grad_out_at_); }

  // Offsets: of the rings' current stages.
  __device__ int queries() const { return Tile::queries_offset + query_at_.slot * Tile::query_bytes; }
  __device__ int grad_out() const { return Tile::grad_out_offset + grad_out_at_.slot * Tile::query_bytes; }
  __device__ int scores() const { return Tile::scores_offset + score_at_.slot * Tile::score_bytes; }

  __device__ std::uint32_t address(int offset) const { return ptx::shared_address(scratch_) + static_cast<std::uint32_t>(offset); }

  // Products are issued, not waited for.

  /// products = rows of keys or values x rows of queries or gradients of outputs.
  __device__ void multiply_rows(float (&products)[count], int rows, int columns) const {
    const std::uint64_t a = ptx::matrix_descriptor<128>(address(rows)), b = ptx::matrix_descriptor<128>(address(columns));
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

  /// sum += what is shared at `place` x the warpgroup's columns of `rows`.
  __device__ void multiply_shared(float (&sum)[sums], int place, int rows) const {
    const std::uint64_t a = ptx::matrix_descriptor<128>(address(scores() + place));
    const std::uint64_t b =
        ptx::transposed_descriptor(address(rows + group() * (Tile::panels / 2) * Tile::query_panel_bytes), Tile::query_panel_bytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::queries / 16; ++step)
      ptx::WgmmaAcrossB<Element, Tile::dim / 2>::issue(sum, a + static_cast<std::uint64_t>(step * 2),
                                                       b + static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16)), true);
    ptx::wgmma_commit_group();
  }

  /// sum = gradients of scores x one of the warpgroup's panels of keys.
  __device__ void multiply_keys(float (&sum)[32], int part) const {
    const std::uint64_t a = ptx::transposed_descriptor(address(scores() + Tile::gradients_place), Tile::score_tile_bytes);
    const std::uint64_t b = ptx::transposed_descriptor(
        address(Tile::keys_offset + (group() * (Tile::panels / 2) + part) * Tile::key_panel_bytes), Tile::key_panel_bytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::keys / 16; ++step) {
      const auto across = static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16));
      ptx::WgmmaAcross<Element, 64>::issue(sum, a + across, b + across, step != 0);
    }
    ptx::wgmma_commit_group();
  }

  __device__ void share_weights(GradientScores<Tile>& gradient, float (&weights)[count], const GradientStep<Tile>& step) const {
    ptx::mbarrier_wait(&shared_.weights_empty[score_at_.slot], score_at_.round ^ 1);
    if constexpr (!plain) {
      float of_slopes[count];
      gradient.split(weights, of_slopes, step, shared_.share[query_at_.slot]);
      store_words(of_slopes, Tile::slopes_place);
    }
    store_words(weights, Tile::weights_place);
    ptx::fence_proxy_async();
    release(&shared_.weights_full[score_at_.slot]);
  }

  /// Where the thread's words of what is shared lie, swizzled as the copy engine would; r: which of its rows, n: which eight columns.
  __device__ std::uint32_t* word(int place, int r, int n) const {
    const int row = warp_ % 4 * 16 + lane_ / 4 + 8 * r, first = row * panel_row_bytes + (row & 7) * 16 + lane_ % 4 * 4;
    return reinterpret_cast<std::uint32_t*>(scratch_ + ((scores() + place + first) ^ (n * 16)));
  }
  __device__ void store_words(const float (&values)[count], int place) const {
#pragma unroll
    for (int i = 0; i < count / 2; ++i) *word(place, i % 2, i / 2) = two_of<Element>(values[2 * i], values[2 * i + 1]);
  }
  __device__ void load_words(std::uint32_t (&words)[count / 2], int place) const {
#pragma unroll
    for (int i = 0; i < count / 2; ++i) words[i] = *word(place, i % 2, i / 2);
  }

  /// A part of the gradient of queries for the warp that adds it up, in the order of registers.
  __device__ void hand_over(const float (&sum)[32]) {
    ptx::mbarrier_wait(&shared_.sums_empty[group()], sums_round_ ^ 1);
    sums_round_ ^= 1;
    auto* const to =
        reinterpret_cast<float4*>(scratch_ + Tile::sums_offset) + group() * (gradient_part_floats / 4) + warp_ % 4 * 32 + lane_;
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i * 128] = {sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]};
    ptx::fence_proxy_async();
    release(&shared_.sums_full[group()][group()]);
  }

  __device__ void store(const GradientPiece& piece, const GradientOutput& to, const float (&sum)[sums], float factor,
                        std::int32_t columns) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_ % 4 * 16 + lane_ / 4 + 8 * r;
      if (row >= piece.keys) continue;
      const std::int64_t at = piece.batch * to.strides[0] + (piece.key_row + row) * to.strides[1] + piece.key_head * to.strides[2];
#pragma unroll
      for (int n = 0; n < Tile::dim / 16; ++n)
        store_pair<Element>(to.is_float, to.data, at, group() * (Tile::dim / 2) + 8 * n + 2 * (lane_ % 4), columns,
                            sum[4 * n + 2 * r] * factor, sum[4 * n + 2 * r + 1] * factor);
    }
  }

  const AttentionBackwardCall&        call_;
  GradientShared<Tile>&               shared_;
  unsigned char*                      scratch_;
  const int                           warp_, lane_;
  RingPosition<Tile::query_stages>    query_at_;
  RingPosition<Tile::grad_out_stages> grad_out_at_;
  RingPosition<Tile::score_stages>    score_at_;
  std::uint32_t                       keys_round_ = 0, sums_round_ = 0;
};

}  // namespace Tributary::Impl::SM90
