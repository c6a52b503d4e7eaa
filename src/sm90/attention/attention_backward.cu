#include "sm90/attention/attention.hpp"
#include "sm90/attention/gradient_load.cuh"
#include "sm90/attention/gradient_scores.cuh"
#include "sm90/prepare.cuh"
#include "sm90/ptx/global.cuh"
#include "sm90/ptx/wgmma.cuh"

// Gradients of queries, keys and values in one sweep: tiles of keys against the stream of queries that see them.
//
// One team an SM draws blocks of keys.  Two warpgroups have 64 keys each: products with a tile of queries and of values with gradients of
// outputs, from these the gradients of scores, and with them sums of the gradients of keys and values in registers.  Through shared memory
// both see the gradients of all scores and multiply them with the keys: the block's part of the gradient of the queries.  Two warps add
// the parts up in device memory, where every tile of queries counts the blocks of keys that it has; a block waits for its turn, so that
// each sum has one order.
//
// The warpgroups take turns: one issues the products of the gradients of a step, of the scores of the next one and of the gradient of the
// queries of the step before, which by then both have shared; meanwhile the other one makes gradients of scores.

namespace Tributary::Impl::SM90 {
namespace {

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
    release(&shared_.queries_empty[slot]);
    if constexpr (Last) {
      ptx::mbarrier_wait(&shared_.scores_full[query_score_at_.slot], query_score_at_.round);
      __syncwarp();
      multiply_keys(grad_query, scores_at(query_score_at_));
      ptx::wgmma_wait_group<0>();
      ptx::pin(grad_query);
      finish_queries(grad_query, n);
    } else {
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

  __device__ void release(std::uint64_t* barrier) const {
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(barrier);
  }

  __device__ void wait_for_queries() const {
    ptx::mbarrier_wait(has_rows_to_clean(call_.problem) ? &shared_.queries_clean[stage_.slot] : &shared_.queries_full[stage_.slot],
                       stage_.round);
    __syncwarp();  // wgmma and its barriers want whole warps
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

  __device__ static int scores_at(const RingPosition<Tile::stages>& at) { return Tile::scores_offset + at.slot * Tile::score_bytes; }

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
      const int            row = warp_ * 16 + lane_ / 4 + 8 * r;
      unsigned char* const to  = scratch_ + scores_at(score_at_) + row * panel_row_bytes + lane_ % 4 * 4;
#pragma unroll
      for (int n = 0; n < Tile::queries / 8; ++n)
        *reinterpret_cast<std::uint32_t*>(to + n / 8 * Tile::key_panel_bytes + (n % 8 ^ (row & 7)) * 16) =
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

  const AttentionBackwardCall& call_;
  GradientShared<Tile>&        shared_;
  unsigned char*               scratch_;
  const int                    warp_, lane_;
  RingPosition<Tile::stages>   stage_, score_at_, query_score_at_;  // the next step's, to share, to multiply with keys
  RingPosition<Tile::adders>   adder_at_;
  std::uint32_t                keys_round_ = 0, sums_round_ = 0;
};

/// Where element (query, column) of a part lies in what finish_queries leaves: four elements a thread, thread by thread.
KOKKOS_INLINE_FUNCTION int place_in_part(int query, int column) {
  const int thread = query / 16 * 32 + query % 8 * 4 + column % 8 / 2;
  return column / 8 * 512 + thread * 4 + query % 16 / 8 * 2 + column % 2;
}

/// Adds the parts up in device memory, each at its turn unless the order may differ; one thread of an adder, which takes every
/// `Tile::adders`-th step: one waits for its turn while the other's sums are on their way.
template <class Tile>
__device__ void add_queries(const AttentionBackwardCall& call, GradientShared<Tile>& shared, unsigned char* scratch, int adder) {
  const AttentionProblem&    p                        = call.problem;
  std::uint32_t              sums_round[Tile::groups] = {};
  RingPosition<Tile::adders> adder_at;
  for (RingPosition<2> piece_at;; piece_at.next()) {
    ptx::mbarrier_wait(&shared.piece_full[piece_at.slot], piece_at.round);
    const GradientPiece& piece = shared.pieces[piece_at.slot];
    if (piece.batch < 0) return ptx::cp_async_bulk_wait();
    const std::int32_t steps = steps_of(p, piece);
    GradientStep<Tile> step(p, piece);
    for (std::int32_t n = 0; n < steps; ++n, adder_at.next(), step.next(piece)) {
      if (adder_at.slot != adder) continue;
      // How many blocks of keys come before this one, of those that the tile of queries sees.
      const std::int32_t start = piece.key_row - piece.first_key;  // row of the sequence's first key
      const std::int32_t seen  = piece.left < 0 ? 0 : max(step.position(piece) - piece.left, 0);
      const std::int32_t turn  = piece.key_row / Tile::keys - (start + seen) / Tile::keys;
      const std::int64_t at    = (piece.first_slot + step.tile) * std::int64_t{p.heads} + step.head;
      if (p.deterministic) {
        while (ptx::ld_acquire(call.plan.turns + at) != turn) __nanosleep(20);
        ptx::fence_proxy_async_global();
      }
      float* to = call.plan.sums + at * Tile::parts * gradient_part_floats;
      for (int group = 0; group < Tile::groups; ++group) {
        if (!Tile::has_part(group, n)) continue;
        ptx::mbarrier_wait(&shared.sums_full[adder][group], sums_round[group]);
        sums_round[group] ^= 1;
        const auto* const from = reinterpret_cast<const float*>(scratch + Tile::sums_offset) + group * gradient_part_floats;
        if (p.deterministic && turn == 0)
          ptx::cp_async_bulk(to, from, gradient_part_floats * 4);
        else
          ptx::cp_reduce_async_bulk_add(to, from, gradient_part_floats * 4);
        ptx::cp_async_bulk_commit_group();
        to += gradient_part_floats;
      }
      ptx::cp_async_bulk_wait_read();
      for (int group = 0; group < Tile::groups; ++group)
        if (Tile::has_part(group, n)) ptx::mbarrier_arrive(&shared.sums_empty[group]);
      if (p.deterministic) {
        ptx::cp_async_bulk_wait();
        ptx::fence_proxy_async_global();
        ptx::st_release(call.plan.turns + at, turn + 1);
      }
    }
    ptx::mbarrier_arrive(&shared.piece_empty[piece_at.slot]);
  }
}

template <class Tile>
struct AttentionBackwardFunctor {
  AttentionBackwardCall call;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    KOKKOS_IF_ON_DEVICE((run(team);))
    KOKKOS_IF_ON_HOST((static_cast<void>(team);))
  }

 private:
  __device__ void run(const Member& team) const {
    unsigned char* const scratch = aligned_scratch(team, Tile::scratch_bytes);
    auto&                shared  = *reinterpret_cast<GradientShared<Tile>*>(scratch + Tile::state_offset);
    static_assert(sizeof(shared) <= Tile::state_bytes);
    const int thread = thread_of_team(), warp = __shfl_sync(0xffffffffu, thread / 32, 0), lane = thread % 32;
    if (thread == 0) initialise(shared);
    __syncthreads();
    // One branch a warpgroup: each divides the registers once.
    if (warp < Tile::math_warps) {
      ptx::setmaxnreg_inc<Tile::math_registers>();
      Differentiator<Tile>(call, shared, scratch, warp, lane).run();
    } else {
      ptx::setmaxnreg_dec<Tile::other_registers>();
      if (warp == Tile::math_warps)
        GradientLoader<Tile>(call, shared, scratch, lane).run();
      else if (warp == Tile::math_warps + 1 && has_rows_to_clean(call.problem))
        clean_tiles<Tile>(call, shared, scratch, lane);
      else if (warp >= Tile::math_warps + 2 && lane == 0)
        add_queries<Tile>(call, shared, scratch, warp - Tile::math_warps - 2);
    }
    exit_thread();
  }

  __device__ void initialise(GradientShared<Tile>& shared) const {
    ptx::mbarrier_init(&shared.keys_full, 1);
    ptx::mbarrier_init(&shared.keys_clean, 1);
    ptx::mbarrier_init(&shared.keys_empty, Tile::math_warps);
    for (int i = 0; i < Tile::stages; ++i) {
      ptx::mbarrier_init(&shared.queries_full[i], 2);  // what is copied, what is known of the rows
      ptx::mbarrier_init(&shared.queries_clean[i], 1);
      ptx::mbarrier_init(&shared.queries_empty[i], Tile::math_warps);
      ptx::mbarrier_init(&shared.scores_full[i], Tile::math_warps);
      ptx::mbarrier_init(&shared.scores_empty[i], Tile::math_warps);
    }
    for (int i = 0; i < Tile::groups; ++i) {
      for (int adder = 0; adder < Tile::adders; ++adder) ptx::mbarrier_init(&shared.sums_full[adder][i], Tile::math_warps / Tile::groups);
      ptx::mbarrier_init(&shared.sums_empty[i], 1);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(&shared.piece_full[i], 1);
      ptx::mbarrier_init(&shared.piece_empty[i], Tile::math_warps + Tile::adders + (has_rows_to_clean(call.problem) ? 1 : 0));
    }
    ptx::fence_mbarrier_init();
  }
};

/// Before the first turn; sums that no first block of keys writes begin with zero.
struct StartSums {
  AttentionBackwardPlan plan;
  std::int64_t          parts;
  bool                  clear_sums;

  KOKKOS_FUNCTION void operator()(const RowPolicy<Kokkos::Cuda>::member_type& team) const {
    const std::int64_t at = team.league_rank(), floats = parts * gradient_part_floats;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, clear_sums ? floats : 0),
                         [&](const std::int64_t i) { plan.sums[at * floats + i] = 0.0f; });
    Kokkos::single(Kokkos::PerTeam(team), [&] { plan.turns[at] = 0; });
  }
};

/// Sums in the order of registers become rows of the gradient of queries; zero where no key was seen.
template <class Element>
struct StoreQueryGradients {
  AttentionProblem      p;
  AttentionBackwardPlan plan;
  GradientOutput        to;
  int                   panels;

  KOKKOS_FUNCTION void operator()(const RowPolicy<Kokkos::Cuda>::member_type& team) const {
    const std::int64_t batch = team.league_rank() / p.queries, row = team.league_rank() % p.queries;
    const Segment      s    = p.packed.segment(batch, row, row + 1, p.queries, p.keys);
    const std::int64_t slot = plan.slot(batch, p.packed, row - s.first_query, s.sequence, s.first_query / plan.queries);
    const int          q = static_cast<int>(s.first_query % plan.queries), pairs = (p.head_dim + 1) / 2;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, p.heads * pairs), [&](const std::int32_t i) {
      const std::int32_t head = i / pairs, column = i % pairs * 2;
      const std::int64_t at   = slot * p.heads + head;
      const bool         some = s.keys > 0 && (!p.deterministic || plan.turns[at] > 0);
      const int          part = q / 64 * panels + column / 64;
      const float* const from =
          plan.sums + (at * (plan.queries / 64) * panels + part) * gradient_part_floats + place_in_part(q % 64, column % 64);
      for (int c = 0; c < 2 && column + c < p.head_dim; ++c)
        store_as<Element>(to.is_float, to.data, batch * to.strides[0] + row * to.strides[1] + head * to.strides[2] + column + c,
                          some ? p.scale * from[c] : 0.0f);
    });
  }
};

template <class Tile>
void run(const Kokkos::Cuda& exec, const AttentionBackwardCall& call, const void* grad_out, const std::int64_t (&grad_out_strides)[3]) {
  const AttentionProblem& p    = call.problem;
  const GradientMaps      maps = [&] {
    const auto map_of = [&](const void* data, const std::int64_t(&strides)[3], std::int64_t rows, std::int32_t heads, std::int32_t columns,
                            int box_rows) { return attention_map(p.type, data, strides, p.batch, rows, heads, columns, box_rows); };
    const CUtensorMap key = map_of(p.key, p.key_strides, p.keys, p.key_heads, p.head_dim, Tile::keys);
    if (p.queries == 0) return GradientMaps{key, key, key, key};  // nothing is loaded
    return GradientMaps{.query    = map_of(p.query, p.query_strides, p.queries, p.heads, p.head_dim, Tile::queries),
                             .key      = key,
                             .value    = map_of(p.value, p.value_strides, p.keys, p.key_heads, p.value_dim, Tile::keys),
                             .grad_out = map_of(grad_out, grad_out_strides, p.queries, p.heads, p.value_dim, Tile::queries)};
  }();
  prepare_maps("Tributary::attention_backward::hopper::prepare", exec, maps, call.plan.maps, call.plan.next_item);
  launch_teams<Tile::team_threads, 1>("Tributary::attention_backward::hopper", exec, call.plan.teams, Tile::scratch_bytes,
                                      AttentionBackwardFunctor<Tile>{call});
}

int    gradient_dim(const AttentionProblem& p) { return std::max(tile_dim(p.head_dim), tile_dim(p.value_dim)); }
Scores gradient_scores(const AttentionProblem& p) { return plain_scores(p) && p.sink == nullptr ? Scores::plain : Scores::biased; }

// The instantiations of this level.
template <class Element, int Dim>
void run_scores(const Kokkos::Cuda& exec, const AttentionBackwardCall& call, const void* grad_out, const std::int64_t (&strides)[3]) {
  if (gradient_scores(call.problem) == Scores::plain)
    run<GradientTile<Element, Dim, Scores::plain>>(exec, call, grad_out, strides);
  else
    run<GradientTile<Element, Dim, Scores::biased>>(exec, call, grad_out, strides);
}

template <class Element>
void run_all(const Kokkos::Cuda& exec, const AttentionBackwardCall& call, const void* grad_out, const std::int64_t (&grad_out_strides)[3],
             const GradientOutput& grad_query) {
  const AttentionProblem& p      = call.problem;
  const std::int64_t      tiles  = p.batch * call.plan.slots * p.heads;
  const int               panels = gradient_dim(p) / panel_columns;
  if (tiles > 0)
    Kokkos::parallel_for("Tributary::attention_backward::hopper::start", RowPolicy<Kokkos::Cuda>(exec, static_cast<int>(tiles), 128),
                         StartSums{call.plan, call.plan.queries / 64 * panels, !p.deterministic});
  if (call.plan.teams > 0) {
    if (gradient_dim(p) == 64)
      run_scores<Element, 64>(exec, call, grad_out, grad_out_strides);
    else
      run_scores<Element, 128>(exec, call, grad_out, grad_out_strides);
  }
  if (p.batch * p.queries > 0)
    Kokkos::parallel_for("Tributary::attention_backward::hopper::store_queries",
                         RowPolicy<Kokkos::Cuda>(exec, static_cast<int>(p.batch * p.queries), 64),
                         StoreQueryGradients<Element>{p, call.plan, grad_query, panels});
}

}  // namespace

template <class Exec>
std::string no_attention_backward(const Exec& exec, const AttentionProblem& p, const RotaryProblem& rotary,
                                  const AttentionBackwardArguments& arguments) {
  if (const std::string reason = no_attention_inputs(exec, p, rotary); !reason.empty()) return reason;
  if (p.head_dim > 128 || p.value_dim > 128) return "it takes head dimensions up to 128";
  if (arguments.out_type == ElementType::float32) return "grad_out is float";
  const AttentionGradients& wanted = *arguments.gradients;
  if (wanted.additive_mask.given() || wanted.alibi_slopes.given() || wanted.relative_bias.given())
    return "the gradient of a bias is wanted";
  const auto aligned = [](const auto& tensor, std::int64_t size) {
    return multiple_of_16_bytes(tensor.data, {tensor.extents[0], tensor.extents[1], tensor.extents[2]},
                                {tensor.strides[0], tensor.strides[1], tensor.strides[2]}, size);
  };
  if (!aligned(arguments.grad_out, 2)) return "grad_out's base or strides are no multiples of 16 bytes";
  if (rotary.dims == 0 && !aligned(arguments.grad_key, 2)) return "grad_key's base or strides are no multiples of 16 bytes";
  if (!aligned(arguments.grad_value, 2)) return "grad_value's base or strides are no multiples of 16 bytes";
  return "";
}

template <class Exec>
AttentionBackwardPlan plan_attention_backward(const Exec& exec, const AttentionProblem& p, WorkspaceLayout& layout) {
  AttentionBackwardPlan plan{};
  plan.blocks              = (p.keys + gradient_keys - 1) / gradient_keys;
  const int dim            = gradient_dim(p);
  plan.queries             = gradient_queries(dim, gradient_scores(p));
  plan.slots               = (p.queries + plan.queries - 1) / plan.queries + (p.packed.cu_seqlens_q == nullptr ? 0 : p.packed.sequences);
  const std::int64_t pairs = p.batch * p.key_heads, bytes_of_pair = p.heads / p.key_heads * p.queries * dim * (2 + 2 + 4);
  plan.section =
      std::clamp<std::int64_t>((std::int64_t{40} << 20) / std::max<std::int64_t>(bytes_of_pair, 1), 1, std::max<std::int64_t>(pairs, 1));
  plan.teams     = static_cast<std::int32_t>(std::min<std::int64_t>(exec.cuda_device_prop().multiProcessorCount, pairs * plan.blocks));
  plan.maps      = layout.take<GradientMaps>(1);
  plan.next_item = layout.take<std::int32_t>(1);
  plan.turns     = layout.take<std::int32_t>(p.batch * plan.slots * p.heads);
  plan.sums      = layout.take<float>(p.batch * plan.slots * p.heads * (plan.queries / 64 * dim / panel_columns) * gradient_part_floats);
  return plan;
}

template <class Exec>
void attention_backward(const Exec& exec, const AttentionProblem& problem, const BucketTable& buckets, const RowStatistics& statistics,
                        const void* grad_out, const std::int64_t (&grad_out_strides)[3], const AttentionBackwardPlan& plan,
                        const GradientOutput& grad_query, const GradientOutput& grad_key, const GradientOutput& grad_value) {
  const AttentionBackwardCall call{problem, buckets, statistics, plan, grad_key, grad_value};
  if (problem.type == ElementType::bfloat16)
    run_all<bfloat16_t>(exec, call, grad_out, grad_out_strides, grad_query);
  else
    run_all<half_t>(exec, call, grad_out, grad_out_strides, grad_query);
}

using Space = Kokkos::Cuda;
template std::string no_attention_backward(const Space&, const AttentionProblem&, const RotaryProblem&, const AttentionBackwardArguments&);
template AttentionBackwardPlan plan_attention_backward(const Space&, const AttentionProblem&, WorkspaceLayout&);
template void attention_backward(const Space&, const AttentionProblem&, const BucketTable&, const RowStatistics&, const void*,
                                 const std::int64_t (&)[3], const AttentionBackwardPlan&, const GradientOutput&, const GradientOutput&,
                                 const GradientOutput&);

}  // namespace Tributary::Impl::SM90
