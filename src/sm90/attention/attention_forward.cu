#include <algorithm>

#include "sm90/attention/attention.hpp"
#include "sm90/attention/load.cuh"
#include "sm90/attention/scaled_load.cuh"
#include "sm90/attention/softmax.cuh"
#include "sm90/attention/transpose_values.cuh"
#include "sm90/prepare.cuh"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/roles.cuh"

// O = softmax(x) V, tiles of queries against a stream of tiles of keys and values.
//
// One team an SM draws work items.  One warp loads (of e4m3 two); two or three warpgroups multiply, each with 64 queries of its own:
// products with a tile of keys, their softmax in registers, and the weights from there against the tile of values.  One's softmax goes on
// under the other's products, beyond 128 columns by turns at the tensor cores; within a warpgroup, products with the next keys come before
// the sum of values.

namespace Tributary::Impl::SM90 {
namespace {

template <class Tile>
class Attender {
 public:
  using Element = typename Tile::Element;

  __device__ Attender(const AttentionForwardCall& call, AttentionShared<Tile>& shared, unsigned char* scratch, int warp, int lane)
      : call_(call),
        shared_(shared),
        group_(warp / 4),
        warp_row_(warp * 16),
        lane_(lane),
        cleans_(has_rows_to_clean(call.problem)),
        query_(ptx::matrix_descriptor<Tile::row_bytes>(ptx::shared_address(scratch) +
                                                       static_cast<std::uint32_t>(warp / 4 * Tile::query_bytes))),
        key_(ptx::matrix_descriptor<Tile::row_bytes>(ptx::shared_address(scratch + Tile::keys_offset))),
        value_(descriptor_of_values(ptx::shared_address(scratch + Tile::values_offset))) {}

  __device__ void run() {
    if (Tile::take_turns && group_ == Tile::groups - 1) ptx::bar_arrive(turn_of(0), 256);
    for (;; piece_at_.next()) {
      ptx::mbarrier_wait(&shared_.piece_full[piece_at_.slot], piece_at_.round);
      const AttentionPiece& piece = shared_.pieces[piece_at_.slot];
      if (piece.batch < 0) break;
      attend(piece);
      __syncwarp();
      if (lane_ == 0) ptx::mbarrier_arrive(&shared_.piece_empty[piece_at_.slot]);
    }
  }

 private:
  // Named barriers: whose turn it is to multiply.
  __device__ static int turn_of(int group) { return 1 + group; }

  static constexpr int sum_count = Tile::value_dim / 2, weight_count = Tile::keys / 2 * static_cast<int>(sizeof(Element)) / 4;

  __device__ static std::uint64_t descriptor_of_values(std::uint32_t address) {
    if constexpr (Tile::e4m3)
      return ptx::matrix_descriptor<Tile::keys>(address);
    else
      return ptx::transposed_descriptor(address, Tile::key_panel_bytes);
  }

  __device__ void attend(const AttentionPiece& piece) {
    RowSoftmax<Tile> softmax(call_, piece, warp_row_, lane_);
    float            sums[sum_count];
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
    if (piece.key_tiles > 0) {
      if constexpr (Tile::e4m3)
        attend_with_scales(piece, softmax, sums);
      else
        attend(piece, softmax, sums);
    }
    store(softmax, sums);
  }

  __device__ void attend(const AttentionPiece& piece, RowSoftmax<Tile>& softmax, float (&sums)[sum_count]) {
    float         scores[Tile::keys / 2], rescale[2];
    std::uint32_t weights[weight_count];
    begin_queries(scores, key_at_);
    release_keys();
    softmax.soften(scores, piece.last_tile * Tile::keys, rescale);
    pack<Element>(scores, weights);
#pragma unroll 1
    for (int n = 1; n < piece.key_tiles; ++n) {
      wait_for_turn(key_at_, value_at_);
      multiply_keys(scores, key_at_.slot);
      multiply_values(sums, weights, value_at_.slot);  // of the tile before
      if constexpr (Tile::take_turns) ptx::bar_arrive(turn_of(1 - group_), 256);
      ptx::wgmma_wait_group<1>();
      ptx::pin(scores);
      release_keys();
      if constexpr (Tile::keeps_scores) {
        std::uint32_t next[weight_count];
        const bool    rescales = softmax.soften(scores, (piece.last_tile - n) * Tile::keys, rescale, next);
        ptx::wgmma_wait_group<0>();
        ptx::pin(sums);
        release_values();
        ptx::move(weights, next);
        if (rescales) multiply(sums, rescale);
      } else {
        const bool rescales = softmax.soften(scores, (piece.last_tile - n) * Tile::keys, rescale);
        // The branch waits for all weights: otherwise ptxas would put the wait for the products in front of most of the exponentials.
        if (rescales) __nanosleep(0);
        ptx::wgmma_wait_group<0>();
        ptx::pin(sums);
        ptx::pin(scores);
        release_values();
        pack<Element>(scores, weights);
        if (rescales) multiply(sums, rescale);
      }
    }
    release(&shared_.query_empty);
    ptx::mbarrier_wait(values_ready(value_at_.slot), value_at_.round);
    __syncwarp();
    multiply_values(sums, weights, value_at_.slot);
    ptx::wgmma_wait_group<0>();
    ptx::pin(sums);
    release_values();
  }

  /// The same with a sum of values for each tile, which joins the others in float while the next tile's products are made.  Tiles are
  /// counted, the number of one says where it lies: a register in place of four.
  __device__ void attend_with_scales(const AttentionPiece& piece, RowSoftmax<Tile>& softmax, float (&sums)[sum_count]) {
    float         scores[Tile::keys / 2], rescale[2];
    float         of_tile[sum_count], scale[2] = {0.0f, 0.0f};  // a tile's sum, and what is still to be multiplied with
    std::uint32_t weights[weight_count];
#pragma unroll
    for (float& sum : of_tile) sum = 0.0f;
    begin_queries(scores, place(tiles_));
    int        tile      = piece.last_tile;
    const auto first_key = [&] { return tile * Tile::keys - keys_before<Tile>(piece.first_key); };  // below 0: other sequences' keys
    const auto factor    = [&] { return take_key_factor(place(tiles_)); };
    softmax.soften(scores, first_key(), rescale, factor);
    pack<Element>(scores, weights);
#pragma unroll 1
    while (tile > piece.last_tile - piece.key_tiles + 1) {
      ++tiles_;
      --tile;
      wait_for_turn(place(tiles_), place(tiles_ - 1));
      multiply_keys(scores, place(tiles_).slot);
      add(sums, of_tile, scale);                                  // of the tile before the last
      multiply_values(of_tile, weights, place(tiles_ - 1).slot);  // of the tile before
      if constexpr (Tile::take_turns) ptx::bar_arrive(turn_of(1 - group_), 256);
      ptx::wgmma_wait_group<1>();
      ptx::pin(scores);
      ptx::forget(tiles_);
      // A branch that waits for all weights here, too.
      if (softmax.soften(scores, first_key(), rescale, factor)) multiply(sums, rescale);
      ptx::wgmma_wait_group<0>();
      ptx::pin(of_tile);
      ptx::pin(scores);
      ptx::forget(tiles_);
      const float value_scale = take_value_scale(place(tiles_ - 1));
#pragma unroll
      for (int r = 0; r < 2; ++r) scale[r] = value_scale * rescale[r];
      pack<Element>(scores, weights);
    }
    release(&shared_.query_empty);
    add(sums, of_tile, scale);
    ptx::mbarrier_wait(values_ready(place(tiles_).slot), place(tiles_).round);
    __syncwarp();
    multiply_values(of_tile, weights, place(tiles_).slot);
    ptx::wgmma_wait_group<0>();
    ptx::pin(of_tile);
    scale[0] = scale[1] = take_value_scale(place(tiles_));
    add(sums, of_tile, scale);
    ++tiles_;
  }

  /// Where the n-th tile of all lies.
  __device__ static RingPosition<Tile::stages> place(std::uint32_t n) {
    constexpr auto stages = static_cast<std::uint32_t>(Tile::stages);
    return {static_cast<int>(n % stages), n / stages % 2};
  }
  /// What the loader put beside a tile, whose place is given back.
  __device__ float take_key_factor(const RingPosition<Tile::stages>& at) const {
    const float factor = shared_.key_factor[at.slot];
    release(&shared_.key_empty[at.slot]);
    return factor;
  }
  __device__ float take_value_scale(const RingPosition<Tile::stages>& at) const {
    const float scale = shared_.value_scale[at.slot];
    release(&shared_.value_empty[at.slot]);
    return scale;
  }

  /// The products of a piece's first tile of keys.
  __device__ void begin_queries(float (&scores)[Tile::keys / 2], const RingPosition<Tile::stages>& keys) {
    ptx::mbarrier_wait(&shared_.query_full, query_round_);
    query_round_ ^= 1;
    ptx::mbarrier_wait(&shared_.key_full[keys.slot], keys.round);
    __syncwarp();  // wgmma and its barriers want whole warps
    multiply_keys(scores, keys.slot);
    ptx::wgmma_wait_group<0>();
    ptx::pin(scores);
  }

  /// Until a tile of keys and one of values have come, and the tensor cores are this warpgroup's.
  __device__ void wait_for_turn(const RingPosition<Tile::stages>& keys, const RingPosition<Tile::stages>& values) const {
    ptx::mbarrier_wait(&shared_.key_full[keys.slot], keys.round);
    ptx::mbarrier_wait(values_ready(values.slot), values.round);
    __syncwarp();
    if constexpr (Tile::take_turns) ptx::bar_sync(turn_of(group_), 256);
  }

  __device__ void release_keys() {
    release(&shared_.key_empty[key_at_.slot]);
    key_at_.next();
  }
  __device__ void release_values() {
    release(&shared_.value_empty[value_at_.slot]);
    value_at_.next();
  }

  /// Factors of the thread's two rows.
  __device__ static void multiply(float (&sums)[sum_count], const float (&factors)[2]) {
#pragma unroll
    for (int i = 0; i < sum_count; ++i) sums[i] *= factors[i / 2 % 2];
  }
  __device__ static void add(float (&sums)[sum_count], const float (&more)[sum_count], const float (&factors)[2]) {
#pragma unroll
    for (int i = 0; i < sum_count; ++i) sums[i] = fmaf(more[i], factors[i / 2 % 2], sums[i]);
  }

  __device__ std::uint64_t* values_ready(int slot) const {
    return !Tile::e4m3 && cleans_ ? &shared_.value_clean[slot] : &shared_.value_full[slot];
  }

  __device__ void release(std::uint64_t* barrier) const {
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(barrier);
  }

  /// scores = queries x a tile of keys; issued, not waited for.
  __device__ void multiply_keys(float (&scores)[Tile::keys / 2], int slot) const {
    constexpr int       steps_of_panel = Tile::row_bytes / 32;
    const std::uint64_t key            = key_ + static_cast<std::uint64_t>(slot * (Tile::key_bytes / 16));
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::query_panels * steps_of_panel; ++step) {
      const int panel = step / steps_of_panel, in_panel = step % steps_of_panel * 2;  // addresses in units of 16 bytes
      ptx::Wgmma<Element, Tile::keys>::issue(scores, query_ + static_cast<std::uint64_t>(panel * (Tile::query_panel_bytes / 16) + in_panel),
                                             key + static_cast<std::uint64_t>(panel * (Tile::key_panel_bytes / 16) + in_panel), step != 0);
    }
    ptx::wgmma_commit_group();
  }

  /// sums += weights x a tile of values, of e4m3 sums = ...; issued, not waited for.
  __device__ void multiply_values(float (&sums)[sum_count], const std::uint32_t (&weights)[weight_count], int slot) const {
    const std::uint64_t value = value_ + static_cast<std::uint64_t>(slot * (Tile::value_bytes / 16));
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < weight_count / 4; ++step) {
      if constexpr (Tile::e4m3)
        ptx::WgmmaRegisterARows<Element, Tile::value_dim>::issue(sums, weights + 4 * step, value + static_cast<std::uint64_t>(2 * step),
                                                                 step != 0);
      else
        ptx::WgmmaRegisterA<Element, Tile::value_dim>::issue(sums, weights + 4 * step,
                                                             value + static_cast<std::uint64_t>(step * (16 * panel_row_bytes / 16)));
    }
    ptx::wgmma_commit_group();
  }

  __device__ void store(RowSoftmax<Tile>& softmax, const float (&sums)[sum_count]) const {
    const AttentionForwardOutput& output = call_.output;
    AttentionRowFactors           factors[2];
    softmax.finish(factors);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!softmax.exists(r)) continue;
      const QueryPlace   i  = softmax.place(r);
      const std::int64_t to = i.batch * output.out_strides[0] + i.row * output.out_strides[1] + i.head * output.out_strides[2];
      const std::int64_t from =
          i.batch * output.previous_out_strides[0] + i.row * output.previous_out_strides[1] + i.head * output.previous_out_strides[2];
#pragma unroll
      for (int n = 0; n < Tile::value_dim / 8; ++n) {
        const int column = 8 * n + 2 * (lane_ % 4);
        float     value[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          value[c] = factors[r].here == 0.0f ? 0.0f : sums[4 * n + 2 * r + c] * factors[r].here;
          if (factors[r].previous != 0.0f && column + c < call_.problem.value_dim)
            value[c] += factors[r].previous * output.previous_out[from + column + c];
        }
        store_pair<Element>(output.out_type, output.out, to, column, call_.problem.value_dim, value[0], value[1]);
      }
    }
  }

  const AttentionForwardCall& call_;
  AttentionShared<Tile>&      shared_;
  const int                   group_, warp_row_, lane_;
  const bool                  cleans_;
  const std::uint64_t         query_, key_, value_;  // descriptors: of this warpgroup's queries, of the first stages
  RingPosition<2>             piece_at_;
  RingPosition<Tile::stages>  key_at_, value_at_;
  std::uint32_t               query_round_ = 0, tiles_ = 0;
};

template <class Tile>
struct AttentionForwardKernel {
  AttentionForwardCall call;

  KOKKOS_INLINE_FUNCTION static constexpr int scratch_bytes() { return Tile::scratch_bytes; }

  __device__ void run(const Member& team, unsigned char* scratch, int warp, int lane) const {
    auto& shared = *reinterpret_cast<AttentionShared<Tile>*>(scratch + Tile::state_offset);
    static_assert(sizeof(shared) <= Tile::state_bytes);
    if (thread_of_team() == 0) initialise(shared);
    __syncthreads();
    // One branch a warpgroup: each divides the registers once.
    if (warp < Tile::math_warps) {
      ptx::setmaxnreg_inc<Tile::math_registers>();
      Attender<Tile>(call, shared, scratch, warp, lane).run();
    } else {
      ptx::setmaxnreg_dec<Tile::other_registers>();
      if constexpr (Tile::e4m3) {
        if (warp <= Tile::math_warps + 1 && lane == 0)
          ScaledLoader<Tile>(call, shared, scratch, warp == Tile::math_warps + 1).run(team.league_rank(), team.league_size());
      } else {
        if (warp == Tile::math_warps && lane == 0) AttentionLoader<Tile>(call, shared, scratch).run(team.league_rank(), team.league_size());
        if (warp == Tile::math_warps + 1 && has_rows_to_clean(call.problem)) clean_values<Tile>(call, shared, scratch, lane);
      }
    }
  }

 private:
  __device__ void initialise(AttentionShared<Tile>& shared) const {
    ptx::mbarrier_init(&shared.query_full, 1);
    ptx::mbarrier_init(&shared.query_empty, Tile::math_warps);
    for (int i = 0; i < Tile::stages; ++i) {
      ptx::mbarrier_init(&shared.key_full[i], 1);
      ptx::mbarrier_init(&shared.key_empty[i], Tile::math_warps);
      ptx::mbarrier_init(&shared.value_full[i], 1);
      ptx::mbarrier_init(&shared.value_clean[i], 1);
      ptx::mbarrier_init(&shared.value_empty[i], Tile::math_warps);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(&shared.piece_full[i], 1);
      ptx::mbarrier_init(&shared.piece_empty[i], Tile::math_warps + (Tile::e4m3 || has_rows_to_clean(call.problem) ? 1 : 0));
    }
    ptx::fence_mbarrier_init();
  }
};

template <class Tile>
void run(const Kokkos::Cuda& exec, const AttentionForwardCall& call) {
  const AttentionProblem& p    = call.problem;
  const AttentionMaps     maps = [&] {
    const auto map_of = [&](const void* data, const std::int64_t(&strides)[3], std::int64_t rows, std::int32_t heads, std::int32_t columns,
                            int box_rows) {
      return attention_map(p.type, data, strides, p.batch, rows, heads, columns, box_rows, Tile::row_bytes);
    };
    const CUtensorMap query = map_of(p.query, p.query_strides, p.queries, p.heads, p.head_dim, Tile::group_rows);
    if (p.keys == 0) return AttentionMaps{query, query, query};  // nothing is loaded
    AttentionMaps all{.query = query, .key = map_of(p.key, p.key_strides, p.keys, p.key_heads, p.head_dim, Tile::keys), .value = {}};
    if constexpr (Tile::e4m3)
      all.value = transposed_map(p, call.plan, Tile::keys, Tile::value_dim);
    else
      all.value = map_of(p.value, p.value_strides, p.keys, p.key_heads, p.value_dim, Tile::keys);
    return all;
  }();
  if constexpr (Tile::e4m3) transpose_values(exec, p, call.plan);
  prepare_maps("Tributary::attention_forward::hopper::prepare", exec, maps, call.plan.maps, call.plan.next_item);
  launch_roles<Tile::team_threads>("Tributary::attention_forward::hopper", exec, call.plan.teams, AttentionForwardKernel<Tile>{call});
}

int tile_rows(const AttentionProblem& p) {
  return p.type != ElementType::float8_e4m3 && std::max(tile_dim(p.head_dim), tile_dim(p.value_dim)) == 64 ? 192 : 128;
}

// The instantiations of this level.
template <class Element, int HeadDim, int ValueDim>
void run_scores(const Kokkos::Cuda& exec, const AttentionForwardCall& call) {
  if (!plain_scores(call.problem))
    run<AttentionTile<Element, HeadDim, ValueDim, Scores::biased>>(exec, call);
  else
    run<AttentionTile<Element, HeadDim, ValueDim, Scores::plain>>(exec, call);
}

template <class Element>
void run_dimensions(const Kokkos::Cuda& exec, const AttentionForwardCall& call) {
  const int head_dim = tile_dim(call.problem.head_dim), value_dim = tile_dim(call.problem.value_dim);
  if (head_dim == 192 && value_dim <= 128) return run_scores<Element, 192, 128>(exec, call);
  switch (std::max(head_dim, value_dim)) {
    case 64: return run_scores<Element, 64, 64>(exec, call);
    case 128: return run_scores<Element, 128, 128>(exec, call);
    case 192: return run_scores<Element, 192, 192>(exec, call);
    default: return run_scores<Element, 256, 256>(exec, call);
  }
}

}  // namespace

template <class Exec>
std::string no_attention_forward(const Exec& exec, const AttentionProblem& p, const RotaryProblem& rotary,
                                 const AttentionForwardArguments& arguments) {
  if (p.type == ElementType::float8_e4m3 && (p.head_dim > 128 || p.value_dim > 128))
    return "it takes head dimensions up to 128 of float8_e4m3";
  if (p.head_dim > 512 || p.value_dim > 512) return "it takes head dimensions up to 512";
  if (const std::string reason = no_attention_inputs(p, rotary); !reason.empty()) return reason;
  if (is_wide(p))
    if (const std::string reason = no_wide_attention_forward(exec, p); !reason.empty()) return reason;
  const Tensor<void, 4>& out = arguments.out;
  return no_whole_vectors("out", out.data, {p.batch, p.queries, p.heads}, {out.strides[0], out.strides[1], out.strides[2]},
                          element_size(arguments.out_type));
}

template <class Exec>
AttentionForwardPlan plan_attention_forward(const Exec& exec, const AttentionProblem& p, WorkspaceLayout& layout) {
  if (is_wide(p)) return plan_wide_attention_forward(exec, p, layout);
  const int            rows = tile_rows(p);
  AttentionForwardPlan plan{};
  plan.blocks = (p.queries + rows - 1) / rows;
  // Half of the second-level cache for the keys and values of the pairs that are worked on together.
  const std::int64_t pairs         = p.batch * p.heads,
                     bytes_of_pair = element_size(p.type) * p.keys * (p.head_dim + p.value_dim) * p.key_heads / std::max(p.heads, 1);
  plan.section =
      std::clamp<std::int64_t>((std::int64_t{32} << 20) / std::max<std::int64_t>(bytes_of_pair, 1), 1, std::max<std::int64_t>(pairs, 1));
  plan.teams     = static_cast<std::int32_t>(std::min<std::int64_t>(exec.cuda_device_prop().multiProcessorCount, pairs * plan.blocks));
  plan.maps      = layout.take<AttentionMaps>(1);
  plan.next_item = layout.take<std::int32_t>(1);
  if (p.type == ElementType::float8_e4m3) {
    plan.transposed_keys   = transposed_keys(p);
    plan.transposed_values = layout.take<float8_e4m3_t>(p.batch * p.key_heads * p.value_dim * plan.transposed_keys);
  }
  return plan;
}

template <class Exec>
void attention_forward(const Exec& exec, const AttentionProblem& problem, const BucketTable& buckets, const AttentionForwardPlan& plan,
                       const AttentionForwardOutput& output) {
  if (plan.teams == 0) return;
  if (is_wide(problem)) return wide_attention_forward(exec, problem, buckets, plan, output);
  const AttentionForwardCall call{problem, buckets, plan, output};
  if (problem.type == ElementType::bfloat16)
    run_dimensions<bfloat16_t>(exec, call);
  else if (problem.type == ElementType::float16)
    run_dimensions<half_t>(exec, call);
  else if (std::max(problem.head_dim, problem.value_dim) <= 64)
    run_scores<float8_e4m3_t, 64, 64>(exec, call);
  else
    run_scores<float8_e4m3_t, 128, 128>(exec, call);
}

using Space = Kokkos::Cuda;
template std::string no_attention_forward(const Space&, const AttentionProblem&, const RotaryProblem&, const AttentionForwardArguments&);
template AttentionForwardPlan plan_attention_forward(const Space&, const AttentionProblem&, WorkspaceLayout&);
template void                 attention_forward(const Space&, const AttentionProblem&, const BucketTable&, const AttentionForwardPlan&,
                                                const AttentionForwardOutput&);

}  // namespace Tributary::Impl::SM90
