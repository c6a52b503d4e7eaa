#include <algorithm>

#include "sm90/attention/attention.hpp"
#include "sm90/attention/softmax.cuh"
#include "sm90/attention/wide_load.cuh"
#include "sm90/prepare.cuh"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/roles.cuh"

// O = softmax(x) V for head dimensions beyond 256, where the sums of 64 rows fill the registers of two warpgroups.
//
// One team an SM draws work items.  A tile's 64 rows are the heads that share a key head, times some neighbouring queries: all of them see
// nearly the same keys.  A thread describes the pieces of the work, another one loads.  The first math warpgroup multiplies queries with a
// tile of keys, makes weights of the scores, and hands them over; each of the two multiplies them with half of the columns of the values.

namespace Tributary::Impl::SM90 {
namespace {

/// A math warpgroup; Half: which columns of the values are its.
template <class Tile, int Half>
class WideAttender {
 public:
  using Element = typename Tile::Element;

  __device__ WideAttender(const AttentionForwardCall& call, WideShared<Tile>& shared, unsigned char* scratch, int warp, int lane)
      : call_(call),
        shared_(shared),
        warp_(warp % Tile::group_warps),
        lane_(lane),
        shares_(values_are_keys(call.problem)),
        cleans_(has_rows_to_clean(call.problem)),
        query_(ptx::matrix_descriptor<128>(ptx::shared_address(scratch))),
        key_(ptx::matrix_descriptor<128>(ptx::shared_address(scratch + Tile::stages_offset))),
        value_(ptx::transposed_descriptor(ptx::shared_address(scratch + Tile::stages_offset + Half * Tile::half_bytes), Tile::panel_bytes)),
        key_at_{.both = shares_, .stage = 0},
        value_at_{.both = shares_, .stage = shares_ ? 0 : 1} {}

  __device__ void run() {
    if constexpr (Half == 0)
      lead();
    else
      follow();
  }

 private:
  using Sums = float[Tile::columns / 2];

  __device__ void lead() {
    for_each_piece([&](const GroupedPiece& piece) {
      RowSoftmax<Tile>    softmax(call_, piece, 16 * warp_, lane_);
      AttentionRowFactors factors[2];
      Sums                sums = {};
      if (piece.key_tiles > 0) {
        float         scores[Tile::keys / 2], rescale[2];
        std::uint32_t weights[Tile::keys / 4];
        ptx::mbarrier_wait(&shared_.query_full, query_round_);
        query_round_ ^= 1;
        multiply_keys(scores);
        ptx::wgmma_wait_group<1>();
        release_keys(0);
        ptx::wgmma_wait_group<0>();
        ptx::pin(scores);
        release_keys(1);
        if (piece.key_tiles == 1) release(&shared_.query_empty);
        softmax.soften(scores, piece.first_seen, rescale);
        pack<Element>(scores, weights);
        hand_over(weights, rescale);
#pragma unroll 1
        for (int n = 1; n < piece.key_tiles; ++n) {
          // With two stages the values' place is wanted first: the next but one tile comes under the products with the next keys.
          multiply_values(sums, weights);
          multiply_keys(scores);
          ptx::wgmma_wait_group<2>();
          release_values();
          ptx::wgmma_wait_group<1>();
          release_keys(0);
          ptx::wgmma_wait_group<0>();
          ptx::pin(sums);
          ptx::pin(scores);
          release_keys(1);
          if (n + 1 == piece.key_tiles) release(&shared_.query_empty);
          softmax.soften(scores, piece.first_seen + n * Tile::keys, rescale);
          pack<Element>(scores, weights);
          hand_over(weights, rescale);
          scale(sums, rescale);
        }
        multiply_values(sums, weights);
        softmax.finish(factors);  // under the last products
        hand_over(factors);
        ptx::wgmma_wait_group<0>();
        ptx::pin(sums);
        release_values();
      } else {
        softmax.finish(factors);
        hand_over(factors);
      }
      store(piece, factors, sums);
    });
  }

  __device__ void follow() {
    for_each_piece([&](const GroupedPiece& piece) {
      Sums sums = {};
#pragma unroll 1
      for (int n = 0; n < piece.key_tiles; ++n) {
        std::uint32_t weights[Tile::keys / 4];
        take_weights(weights, sums);
        multiply_values(sums, weights);
        ptx::wgmma_wait_group<0>();
        ptx::pin(sums);
        release_values();
      }
      AttentionRowFactors factors[2];
      take_factors(factors);
      store(piece, factors, sums);
    });
  }

  template <class Attend>
  __device__ void for_each_piece(const Attend& attend) {
    for (RingPosition<Tile::pieces> at;; at.next()) {
      ptx::mbarrier_wait(&shared_.piece_full[at.slot], at.round);
      const GroupedPiece& piece = shared_.pieces[at.slot];
      if (piece.batch < 0) return;
      attend(piece);
      release(&shared_.piece_empty[at.slot]);
    }
  }

  __device__ void release(std::uint64_t* barrier) const {
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(barrier);
  }

  /// scores = queries x a tile of keys, a group of products a half; issued, not waited for.
  __device__ void multiply_keys(float (&scores)[Tile::keys / 2]) const {
#pragma unroll
    for (int half = 0; half < Tile::halves; ++half) {
      ptx::mbarrier_wait(shares_ && cleans_ ? &shared_.clean[key_at_.stage][half] : &shared_.full[key_at_.stage][half], key_at_.round);
      __syncwarp();  // wgmma and its barriers want whole warps
      // Addresses in units of 16 bytes.  Added up again for every tile: kept, there would be too many of them for the registers.
      const std::uint64_t of_half = static_cast<std::uint64_t>(half * (Tile::half_bytes / 16));
      const std::uint64_t key     = key_ + of_half + static_cast<std::uint64_t>(key_at_.stage * (Tile::tile_bytes / 16));
      std::uint64_t       query   = query_ + of_half;
      ptx::forget(query);
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < Tile::columns / 16; ++step) {
        const auto at = static_cast<std::uint64_t>(step / 4 * (Tile::panel_bytes / 16) + step % 4 * 2);
        ptx::Wgmma<Element, Tile::keys>::issue(scores, query + at, key + at, half != 0 || step != 0);
      }
      ptx::wgmma_commit_group();
    }
  }

  /// sums += weights x this warpgroup's half of a tile of values; issued, not waited for.
  __device__ void multiply_values(Sums& sums, const std::uint32_t (&weights)[Tile::keys / 4]) const {
    // The first warpgroup has waited for values that are keys when they were keys.
    if (Half != 0 || !shares_)
      ptx::mbarrier_wait(cleans_ ? &shared_.clean[value_at_.stage][Half] : &shared_.full[value_at_.stage][Half], value_at_.round);
    __syncwarp();
    const std::uint64_t value = value_ + static_cast<std::uint64_t>(value_at_.stage * (Tile::tile_bytes / 16));
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::keys / 16; ++step)
      ptx::WgmmaRegisterA<Element, Tile::columns>::issue(sums, weights + 4 * step,
                                                         value + static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16)));
    ptx::wgmma_commit_group();
  }

  /// After the products with a half of the keys, unless these are values, too.
  __device__ void release_keys(int half) {
    if (!shares_) release(&shared_.empty[key_at_.stage][half]);
    if (half == Tile::halves - 1) key_at_.next();
  }

  /// After a warpgroup's products with its half of the values.  These come after the same tile's products as keys.
  __device__ void release_values() {
    release(&shared_.empty[value_at_.stage][Half]);
    value_at_.next();
  }

  __device__ void scale(Sums& sums, const float (&rescale)[2]) const {
    if (!__any_sync(0xffffffffu, rescale[0] != 1.0f || rescale[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < Tile::columns / 2; ++i) sums[i] *= rescale[i / 2 % 2];
  }

  // From thread to thread: the one with the same number in the other warpgroup has the same rows, and wants the same registers.
  __device__ int thread() const { return 32 * warp_ + lane_; }

  __device__ WideHandover& next_handover() const {
    ptx::mbarrier_wait(&shared_.handover_empty[handover_at_.slot], handover_at_.round ^ 1);
    return shared_.handovers[handover_at_.slot];
  }
  __device__ void hand_over(const std::uint32_t (&weights)[Tile::keys / 4], const float (&rescale)[2]) {
    WideHandover& to = next_handover();
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to.weights[i][thread()] = make_uint4(weights[4 * i], weights[4 * i + 1], weights[4 * i + 2], weights[4 * i + 3]);
    to.rescale[thread()] = make_float2(rescale[0], rescale[1]);
    release(&shared_.handover_full[handover_at_.slot]);
    handover_at_.next();
  }
  __device__ void hand_over(const AttentionRowFactors (&factors)[2]) {
    WideHandover& to = next_handover();
#pragma unroll
    for (int r = 0; r < 2; ++r) to.factors[r][thread()] = factors[r];
    release(&shared_.handover_full[handover_at_.slot]);
    handover_at_.next();
  }

  __device__ const WideHandover& handed_over() const {
    ptx::mbarrier_wait(&shared_.handover_full[handover_at_.slot], handover_at_.round);
    return shared_.handovers[handover_at_.slot];
  }
  __device__ void take_weights(std::uint32_t (&weights)[Tile::keys / 4], Sums& sums) {
    const WideHandover& from = handed_over();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 four   = from.weights[i][thread()];
      weights[4 * i]     = four.x;
      weights[4 * i + 1] = four.y;
      weights[4 * i + 2] = four.z;
      weights[4 * i + 3] = four.w;
    }
    const float2 both       = from.rescale[thread()];
    const float  rescale[2] = {both.x, both.y};
    release(&shared_.handover_empty[handover_at_.slot]);
    handover_at_.next();
    scale(sums, rescale);
  }
  __device__ void take_factors(AttentionRowFactors (&factors)[2]) {
    const WideHandover& from = handed_over();
#pragma unroll
    for (int r = 0; r < 2; ++r) factors[r] = from.factors[r][thread()];
    release(&shared_.handover_empty[handover_at_.slot]);
    handover_at_.next();
  }

  __device__ void store(const GroupedPiece& piece, const AttentionRowFactors (&factors)[2], Sums& sums) const {
    const AttentionForwardOutput& output  = call_.output;
    const std::int32_t            columns = call_.problem.value_dim, first = Half * Tile::columns + 2 * (lane_ % 4);
#pragma unroll
    for (int i = 0; i < Tile::columns / 2; ++i) sums[i] = factors[i / 2 % 2].here == 0.0f ? 0.0f : sums[i] * factors[i / 2 % 2].here;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int          row    = 16 * warp_ + lane_ / 4 + 8 * r;
      const bool         exists = piece.has(row);
      const QueryPlace   i      = piece.place(row);
      const std::int64_t to     = i.batch * output.out_strides[0] + i.row * output.out_strides[1] + i.head * output.out_strides[2];
      if (exists && factors[r].previous != 0.0f) {
        const float* const previous = output.previous_out + i.batch * output.previous_out_strides[0] +
                                      i.row * output.previous_out_strides[1] + i.head * output.previous_out_strides[2];
#pragma unroll
        for (int n = 0; n < Tile::columns / 4; ++n) {
          const int column = first + 8 * (n / 2) + n % 2;
          if (column < columns) sums[4 * (n / 2) + 2 * r + n % 2] += factors[r].previous * previous[column];
        }
      }
      if (output.out_type == ElementType::float32 || columns % 8 != 0) {
#pragma unroll
        for (int n = 0; n < Tile::columns / 8; ++n)
          if (exists)
            store_pair<Element>(output.out_type, output.out, to, first + 8 * n, columns, sums[4 * n + 2 * r], sums[4 * n + 2 * r + 1]);
      } else {
        // Four neighbouring threads share a row: each has two of every 8 columns.  They exchange what they have of 32 columns, so that each
        // stores 8 that follow one another.
#pragma unroll
        for (int n = 0; n < Tile::columns / 8; n += 4) {
          std::uint32_t two[4];
#pragma unroll
          for (int m = 0; m < 4; ++m) two[m] = two_of<Element>(sums[4 * (n + m) + 2 * r], sums[4 * (n + m) + 2 * r + 1]);
          exchange(two);
          const int column = Half * Tile::columns + 8 * (n + lane_ % 4);
          if (exists && column < columns)
            *reinterpret_cast<uint4*>(static_cast<Element*>(output.out) + to + column) = make_uint4(two[0], two[1], two[2], two[3]);
        }
      }
    }
  }

  /// Four threads have four numbers each: the first one gets what is first at each of them, and so on.
  __device__ void exchange(std::uint32_t (&of)[4]) const {
    const bool odd = lane_ % 2 != 0, high = lane_ / 2 % 2 != 0;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const std::uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? of[i] : of[i + 1], 1);
      of[i]                     = odd ? other : of[i];
      of[i + 1]                 = odd ? of[i + 1] : other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::uint32_t other = __shfl_xor_sync(0xffffffffu, high ? of[i] : of[i + 2], 2);
      of[i]                     = high ? other : of[i];
      of[i + 2]                 = high ? of[i + 2] : other;
    }
  }

  const AttentionForwardCall& call_;
  WideShared<Tile>&           shared_;
  const int                   warp_, lane_;  // warp_: within its warpgroup
  const bool                  shares_, cleans_;
  const std::uint64_t         query_, key_, value_;  // descriptors: of the queries, of the first stage, of this warpgroup's half of it
  WideStages                  key_at_, value_at_;
  RingPosition<2>             handover_at_;
  std::uint32_t               query_round_ = 0;
};

template <class Tile>
struct WideAttentionKernel {
  AttentionForwardCall call;

  KOKKOS_INLINE_FUNCTION static constexpr int scratch_bytes() { return wide_scratch_bytes<Tile>; }

  __device__ void run(const Member& team, unsigned char* scratch, int warp, int lane) const {
    auto& shared = *reinterpret_cast<WideShared<Tile>*>(scratch + Tile::handover_offset);
    if (thread_of_team() == 0) initialise(shared);
    __syncthreads();
    // One branch a warpgroup: each divides the registers once.
    if (warp < Tile::group_warps) {
      ptx::setmaxnreg_inc<Tile::math_registers>();
      WideAttender<Tile, 0>(call, shared, scratch, warp, lane).run();
    } else if (warp < Tile::math_warps) {
      ptx::setmaxnreg_inc<Tile::math_registers>();
      WideAttender<Tile, 1>(call, shared, scratch, warp, lane).run();
    } else {
      ptx::setmaxnreg_dec<Tile::other_registers>();
      if (warp == Tile::math_warps && lane == 0) WideLoader<Tile>(call, shared, scratch).run();
      if (warp == Tile::math_warps + 1 && has_rows_to_clean(call.problem)) clean_wide_values<Tile>(call, shared, scratch, lane);
      if (warp == Tile::math_warps + 2 && lane == 0) WideDealer<Tile>(call, shared).run(team.league_rank(), team.league_size());
    }
  }

 private:
  __device__ void initialise(WideShared<Tile>& shared) const {
    ptx::mbarrier_init(&shared.query_full, 1);
    ptx::mbarrier_init(&shared.query_empty, Tile::group_warps);
    for (int stage = 0; stage < Tile::stages; ++stage)
      for (int half = 0; half < Tile::halves; ++half) {
        ptx::mbarrier_init(&shared.full[stage][half], 1);
        ptx::mbarrier_init(&shared.clean[stage][half], 1);
        ptx::mbarrier_init(&shared.empty[stage][half], Tile::group_warps);
      }
    for (int i = 0; i < Tile::handovers; ++i) {
      ptx::mbarrier_init(&shared.handover_full[i], Tile::group_warps);
      ptx::mbarrier_init(&shared.handover_empty[i], Tile::group_warps);
    }
    for (int i = 0; i < Tile::pieces; ++i) {
      ptx::mbarrier_init(&shared.piece_full[i], 1);
      ptx::mbarrier_init(&shared.piece_empty[i], Tile::math_warps + (has_rows_to_clean(call.problem) ? 2 : 1));
    }
    ptx::fence_mbarrier_init();
  }
};

template <class Tile>
void run(const Kokkos::Cuda& exec, const AttentionForwardCall& call) {
  static_assert(wide_scratch_bytes<Tile> + scratch_alignment <= largest_scratch(Tile::team_threads / 32));
  const AttentionProblem& p     = call.problem;
  const CUtensorMap       query = tensor_map<4>(p.type, p.query,
                                          {.extents = {p.head_dim, p.heads, p.queries, p.batch},
                                                 .strides = {p.query_strides[2], p.query_strides[1], p.query_strides[0]},
                                                 .box     = {panel_columns, call.plan.tile_heads, call.plan.tile_queries, 1}});
  const AttentionMaps     maps  = [&] {
    const auto map_of = [&](const void* data, const std::int64_t(&strides)[3], std::int32_t columns) {
      return attention_map(p.type, data, strides, p.batch, p.keys, p.key_heads, columns, Tile::keys);
    };
    if (p.keys == 0) return AttentionMaps{query, query, query};  // nothing is loaded
    return AttentionMaps{
             .query = query, .key = map_of(p.key, p.key_strides, p.head_dim), .value = map_of(p.value, p.value_strides, p.value_dim)};
  }();
  prepare_maps("Tributary::attention_forward::hopper::prepare", exec, maps, call.plan.maps, call.plan.next_item);
  launch_roles<Tile::team_threads>("Tributary::attention_forward::hopper::wide", exec, call.plan.teams, WideAttentionKernel<Tile>{call});
}

// The instantiations for head dimensions beyond 256.
template <class Element>
void run_scores(const Kokkos::Cuda& exec, const AttentionForwardCall& call) {
  if (plain_scores(call.problem))
    run<WideTile<Element, Scores::plain>>(exec, call);
  else
    run<WideTile<Element, Scores::biased>>(exec, call);
}

}  // namespace

template <class Exec>
AttentionForwardPlan plan_wide_attention_forward(const Exec& exec, const AttentionProblem& p, WorkspaceLayout& layout) {
  constexpr std::int32_t rows  = WideTile<half_t, Scores::plain>::rows;
  const std::int32_t     group = p.heads / std::max(p.key_heads, 1);
  AttentionForwardPlan   plan{};
  plan.tile_heads   = std::clamp(group, 1, rows);
  plan.tile_queries = rows / plan.tile_heads;
  plan.head_blocks  = (group + plan.tile_heads - 1) / plan.tile_heads;
  plan.blocks       = (p.queries + plan.tile_queries - 1) / plan.tile_queries;
  // Half of the second-level cache for the keys and values of the key heads that are worked on together.
  const std::int64_t key_pairs = p.batch * p.key_heads, pairs = key_pairs * plan.head_blocks;
  const std::int64_t bytes_of_pair = 2 * p.keys * (p.head_dim + p.value_dim);
  plan.section                     = std::clamp<std::int64_t>((std::int64_t{32} << 20) / std::max<std::int64_t>(bytes_of_pair, 1), 1,
                                          std::max<std::int64_t>(key_pairs, 1)) *
                 std::max(plan.head_blocks, 1);
  plan.teams     = static_cast<std::int32_t>(std::min<std::int64_t>(exec.cuda_device_prop().multiProcessorCount, pairs * plan.blocks));
  plan.maps      = layout.take<AttentionMaps>(1);
  plan.next_item = layout.take<std::int32_t>(1);
  return plan;
}

template <class Exec>
std::string no_wide_attention_forward(const Exec& exec, const AttentionProblem& p) {
  WorkspaceLayout            layout;
  const AttentionForwardPlan plan = plan_wide_attention_forward(exec, p, layout);
  if (p.batch * p.key_heads * plan.head_blocks * plan.blocks > 0x7fff0000) return "there are more than 2^31 tiles of queries";
  return "";
}

template <class Exec>
void wide_attention_forward(const Exec& exec, const AttentionProblem& problem, const BucketTable& buckets, const AttentionForwardPlan& plan,
                            const AttentionForwardOutput& output) {
  const AttentionForwardCall call{problem, buckets, plan, output};
  if (problem.type == ElementType::bfloat16)
    run_scores<bfloat16_t>(exec, call);
  else
    run_scores<half_t>(exec, call);
}

using Space = Kokkos::Cuda;
template std::string          no_wide_attention_forward(const Space&, const AttentionProblem&);
template AttentionForwardPlan plan_wide_attention_forward(const Space&, const AttentionProblem&, WorkspaceLayout&);
template void                 wide_attention_forward(const Space&, const AttentionProblem&, const BucketTable&, const AttentionForwardPlan&,
                                                     const AttentionForwardOutput&);

}  // namespace Tributary::Impl::SM90
