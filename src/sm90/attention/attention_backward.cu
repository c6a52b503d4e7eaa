#include "sm90/attention/attention.hpp"
#include "sm90/attention/gradient_crew.cuh"
#include "sm90/attention/gradient_gather.cuh"
#include "sm90/attention/gradient_load.cuh"
#include "sm90/attention/gradient_long.cuh"
#include "sm90/attention/gradient_math.cuh"
#include "sm90/attention/gradient_sums.cuh"
#include "sm90/attention/gradient_wide.cuh"
#include "sm90/prepare.cuh"
#include "sm90/roles.cuh"

// Gradients of queries, keys and values in one sweep: tiles of keys against the stream of queries that see them.
//
// One team an SM draws blocks of keys.  Two warpgroups have 64 keys each: products with a tile of queries and of values with gradients of
// outputs, from these the gradients of scores, and with them sums of the gradients of keys and values in registers.  Through shared memory
// both see the gradients of all scores and multiply them with the keys: the block's part of the gradient of the queries.  Two warps add
// the parts up in device memory, where every tile of queries counts the blocks of keys that it has; a block waits for its turn, so that
// each sum has one order.
//
// The gradient of a step's queries is multiplied a step later, when both warpgroups have long shared theirs.  They take turns at that one
// and the gradients of values and keys: meanwhile the other one makes gradients of scores.  Heads of more than 128 components divide the
// work another way: gradient_crew.cuh.

namespace Tributary::Impl::SM90 {
namespace {

template <class Tile>
struct AttentionBackwardKernel {
  AttentionBackwardCall call;

  KOKKOS_INLINE_FUNCTION static constexpr int scratch_bytes() { return Tile::scratch_bytes; }

  __device__ void run(const Member&, unsigned char* scratch, int warp, int lane) const {
    const bool            cleans = has_rows_to_clean(call.problem);
    GradientShared<Tile>& shared = start_team<Tile>(scratch, cleans);
    // One branch a warpgroup: each divides the registers once.
    if (warp < Tile::math_warps) {
      ptx::setmaxnreg_inc<Tile::math_registers>();
      Differentiator<Tile>(call, shared, scratch, warp, lane).run();
    } else {
      ptx::setmaxnreg_dec<Tile::other_registers>();
      if (warp == Tile::math_warps)
        GradientLoader<Tile>(call, shared, scratch, lane).run();
      else if (warp == Tile::math_warps + 1 && cleans)
        clean_tiles<Tile>(call, shared, scratch, lane);
      else if (warp >= Tile::math_warps + 2 && lane == 0)
        add_queries<Tile>(call, shared, scratch, warp - Tile::math_warps - 2);
    }
  }
};

/// The kernel of a team in a crew: it makes gradients of keys and values, or gathers those of queries.
template <class Element, Scores TheScores, int Dim>
struct AttentionBackwardCrewKernel {
  static constexpr int  halves = crew_halves(Dim);
  static constexpr bool pairs  = halves > 1;  // of makers
  using Gather                 = GatherTile<Element, halves>;
  using Wide                   = WideGradientTile<Element, TheScores>;
  using Weighing               = LongGradientTile<Element, TheScores, MakerRole::weighs>;
  using Differentiating        = LongGradientTile<Element, TheScores, MakerRole::differentiates>;
  using Tile                   = std::conditional_t<pairs, Differentiating, Wide>;
  static_assert(Tile::math_warps == Gather::math_warps && Tile::team_threads == Gather::team_threads);
  static_assert(Weighing::scratch_bytes == Differentiating::scratch_bytes);
  // What makers and gatherer have to agree on: how blocks and steps are cut, what a step hands over.
  static_assert(Tile::queries == Gather::queries && Tile::block_keys == Gather::block_keys && Gather::score_bytes == crew_place_bytes &&
                Tile::key_panel_bytes == crew_place_bytes);

  AttentionBackwardCall call;

  // The team's number comes behind what all kinds of teams have.
  static constexpr int ticket_offset = Tile::scratch_bytes > Gather::scratch_bytes ? Tile::scratch_bytes : Gather::scratch_bytes;
  KOKKOS_INLINE_FUNCTION static constexpr int scratch_bytes() { return ticket_offset + 16; }
  static_assert(ticket_offset + 16 + scratch_alignment <= largest_scratch(Tile::team_threads / 32));

  __device__ void run(const Member&, unsigned char* scratch, int warp, int lane) const {
    auto& ticket = *reinterpret_cast<std::int32_t*>(scratch + ticket_offset);
    if (thread_of_team() == 0) ticket = atomicAdd(call.plan.tickets, 1);
    __syncthreads();
    const CrewSeat seat(call.plan, Dim, __shfl_sync(0xffffffffu, ticket, 0));
    const bool     cleans = has_rows_to_clean(call.problem);
    if (seat.gathers())
      gather(seat, start_team<Gather>(scratch, cleans), scratch, warp, lane, cleans);
    else if constexpr (!pairs)
      make(seat, start_team<Wide>(scratch, cleans), scratch, warp, lane, cleans);
    else if (seat.shares_weights())
      make(seat, start_team<Weighing>(scratch, cleans), scratch, warp, lane, cleans);
    else
      make(seat, start_team<Differentiating>(scratch, cleans), scratch, warp, lane, cleans);
  }

 private:
  __device__ void make(const CrewSeat& seat, GradientShared<Wide>& shared, unsigned char* scratch, int warp, int lane, bool cleans) const {
    if (warp < Wide::math_warps) {
      ptx::setmaxnreg_inc<Wide::math_registers>();
      WideDifferentiator<Wide>(call, shared, scratch, warp, lane).run();
    } else {
      ptx::setmaxnreg_dec<Wide::other_registers>();
      if (warp == Wide::math_warps) {
        CrewItems items(seat, lane);
        GradientLoader<Wide>(call, shared, scratch, lane).run([&] { return items.next(); }, seat.part() * Wide::keys);
      } else if (warp == Wide::math_warps + 1 && cleans) {
        clean_tiles<Wide>(call, shared, scratch, lane);
      } else if (warp == Wide::math_warps + 2 && lane == 0) {
        share_with_crew(call, shared, seat, scratch + Wide::scores_offset + Wide::gradients_place, shared.scores_full, shared.scores_empty);
      }
    }
  }

  template <MakerRole Role>
  __device__ void make(const CrewSeat& seat, GradientShared<LongGradientTile<Element, TheScores, Role>>& shared, unsigned char* scratch,
                       int warp, int lane, bool cleans) const {
    using Long = LongGradientTile<Element, TheScores, Role>;
    if (warp < Long::math_warps) {
      ptx::setmaxnreg_inc<Long::math_registers>();
      LongDifferentiator<Long>(call, shared, scratch, warp, lane).run();
    } else {
      ptx::setmaxnreg_dec<Long::other_registers>();
      if (warp == Long::math_warps) {
        CrewItems items(seat, lane);
        LongLoader<Long>(call, shared, scratch, lane).run([&] { return items.next(); }, seat.part() * Long::keys);
      } else if (warp == Long::math_warps + 1 && cleans) {
        clean_long_tiles<Long>(call, shared, scratch, lane);
      } else if (warp == Long::math_warps + 2 && lane == 0) {
        if constexpr (Long::hands_weights_over)
          share_with_crew(call, shared, seat, scratch + Long::weights_offset, shared.weights_full, shared.weights_empty);
        else
          share_with_crew(call, shared, seat, scratch + Long::scores_offset, shared.scores_full, shared.scores_empty);
      } else if (warp == Long::math_warps + 3 && lane == 0 && !Long::weighs) {
        fetch_weights(call, shared, scratch, seat);
      }
    }
  }

  __device__ void gather(const CrewSeat& seat, GradientShared<Gather>& shared, unsigned char* scratch, int warp, int lane,
                         bool cleans) const {
    if (warp < Gather::math_warps) {
      ptx::setmaxnreg_inc<Tile::math_registers>();
      Gatherer<Gather>(call, shared, scratch, warp, lane).run();
    } else {
      ptx::setmaxnreg_dec<Tile::other_registers>();
      if (warp == Gather::math_warps)
        GatherLoader<Gather>(call, shared, scratch, lane, seat).run();
      else if (warp == Gather::math_warps + 1 && cleans)
        clean_keys(call, shared, scratch, lane, {Gather::keys_offset}, [](const GradientPiece&) {});
      else if (warp >= Gather::math_warps + 2 && lane == 0)
        add_queries<Gather>(call, shared, scratch, warp - Gather::math_warps - 2, seat.half());
    }
  }
};

constexpr const char* label = "Tributary::attention_backward::hopper";

template <class Tile>
void prepare(const Kokkos::Cuda& exec, const AttentionBackwardCall& call, const void* grad_out, const std::int64_t (&strides)[3]) {
  const GradientMaps maps = gradient_maps<Tile>(call.problem, grad_out, strides);
  prepare_maps("Tributary::attention_backward::hopper::prepare", exec, maps, call.plan.maps, call.plan.next_item);
}

template <class Element, Scores TheScores, int Dim>
void run(const Kokkos::Cuda& exec, const AttentionBackwardCall& call, const void* grad_out, const std::int64_t (&strides)[3]) {
  if constexpr (Dim > 128) {
    using Kernel = AttentionBackwardCrewKernel<Element, TheScores, Dim>;
    prepare<typename Kernel::Tile>(exec, call, grad_out, strides);
    Kokkos::parallel_for("Tributary::attention_backward::hopper::start_crews",
                         ElementPolicy<Kokkos::Cuda>(exec, 0, call.plan.teams / crew_teams(Dim)),
                         StartCrews{static_cast<CrewState*>(call.plan.crews), call.plan.tickets});
    launch_roles<Kernel::Tile::team_threads>(label, exec, call.plan.teams, Kernel{call});
  } else {
    using Tile = GradientTile<Element, Dim, TheScores>;
    prepare<Tile>(exec, call, grad_out, strides);
    launch_roles<Tile::team_threads>(label, exec, call.plan.teams, AttentionBackwardKernel<Tile>{call});
  }
}

Scores gradient_scores(const AttentionProblem& p) { return plain_scores(p) && p.sink == nullptr ? Scores::plain : Scores::biased; }

// The instantiations of this level.
template <class Element, Scores TheScores>
void run_dimensions(const Kokkos::Cuda& exec, const AttentionBackwardCall& call, const void* grad_out, const std::int64_t (&strides)[3]) {
  switch (gradient_dim(call.problem)) {
    case 64: return run<Element, TheScores, 64>(exec, call, grad_out, strides);
    case 128: return run<Element, TheScores, 128>(exec, call, grad_out, strides);
    case 256: return run<Element, TheScores, 256>(exec, call, grad_out, strides);
    default: return run<Element, TheScores, 512>(exec, call, grad_out, strides);
  }
}

template <class Element>
void run_all(const Kokkos::Cuda& exec, const AttentionBackwardCall& call, const void* grad_out, const std::int64_t (&grad_out_strides)[3],
             const GradientOutput& grad_query) {
  const AttentionProblem& p     = call.problem;
  const std::int64_t      tiles = p.batch * call.plan.slots * p.heads;
  const int               dim = gradient_dim(p), panels = dim / panel_columns, halves = crew_halves(dim);
  if (tiles > 0)
    Kokkos::parallel_for("Tributary::attention_backward::hopper::start", RowPolicy<Kokkos::Cuda>(exec, static_cast<int>(tiles), 128),
                         StartSums{call.plan, call.plan.queries / 64 * panels, halves, !p.deterministic});
  if (call.plan.teams > 0) {
    if (gradient_scores(p) == Scores::plain)
      run_dimensions<Element, Scores::plain>(exec, call, grad_out, grad_out_strides);
    else
      run_dimensions<Element, Scores::biased>(exec, call, grad_out, grad_out_strides);
  }
  if (p.batch * p.queries > 0) {
    bool in_pairs = reinterpret_cast<std::uintptr_t>(grad_query.data) % (grad_query.is_float ? 8 : 4) == 0;
    for (const std::int64_t stride : grad_query.strides) in_pairs = in_pairs && stride % 2 == 0;
    Kokkos::parallel_for("Tributary::attention_backward::hopper::store_queries", StoreQueryGradients<Element>::policy(exec, p),
                         StoreQueryGradients<Element>{p, call.plan, grad_query, in_pairs, panels, halves});
  }
}

}  // namespace

template <class Exec>
std::string no_attention_backward(const Exec& exec, const AttentionProblem& p, const RotaryProblem& rotary,
                                  const AttentionBackwardArguments& arguments) {
  if (const std::string reason = no_attention_inputs(p, rotary); !reason.empty()) return reason;
  if (p.head_dim > 512 || p.value_dim > 512) return "it takes head dimensions up to 512";
  const int dim = gradient_dim(p);
  if (dim > 128 && exec.cuda_device_prop().multiProcessorCount < crew_teams(dim))
    return "heads of more than " + std::to_string(dim / 2) + " components take " + std::to_string(crew_teams(dim)) +
           " multiprocessors, the device has " + std::to_string(exec.cuda_device_prop().multiProcessorCount);
  if (arguments.out_type == ElementType::float32) return "grad_out is float";
  const auto no_vectors = [](const char* name, const auto& tensor) {
    return no_whole_vectors(name, tensor.data, {tensor.extents[0], tensor.extents[1], tensor.extents[2]},
                            {tensor.strides[0], tensor.strides[1], tensor.strides[2]}, 2);
  };
  std::string reason = no_vectors("grad_out", arguments.grad_out);
  if (rotary.dims == 0 && reason.empty()) reason = no_vectors("grad_key", arguments.grad_key);
  return reason.empty() ? no_vectors("grad_value", arguments.grad_value) : reason;
}

template <class Exec>
AttentionBackwardPlan plan_attention_backward(const Exec& exec, const AttentionProblem& p, WorkspaceLayout& layout) {
  AttentionBackwardPlan plan{};
  const int             dim = gradient_dim(p), keys = gradient_keys(dim);
  plan.blocks              = (p.keys + keys - 1) / keys;
  plan.queries             = gradient_queries(dim, gradient_scores(p));
  plan.slots               = (p.queries + plan.queries - 1) / plan.queries + (p.packed.cu_seqlens_q == nullptr ? 0 : p.packed.sequences);
  const std::int64_t pairs = p.batch * p.key_heads, bytes_of_pair = p.heads / p.key_heads * p.queries * dim * (2 + 2 + 4);
  plan.section =
      std::clamp<std::int64_t>((std::int64_t{20} << 20) / std::max<std::int64_t>(bytes_of_pair, 1), 1, std::max<std::int64_t>(pairs, 1));
  const std::int64_t processors = exec.cuda_device_prop().multiProcessorCount;
  const std::int64_t crews      = dim > 128 ? std::min(std::max<std::int64_t>(processors / crew_teams(dim), 1), pairs * plan.blocks) : 0;
  plan.teams     = static_cast<std::int32_t>(dim > 128 ? crews * crew_teams(dim) : std::min(processors, pairs * plan.blocks));
  plan.crews     = layout.take<CrewState>(crews);
  plan.tickets   = layout.take<std::int32_t>(1);
  plan.places    = layout.take<unsigned char>(crews * crew_makers(dim) * crew_places * crew_place_bytes);
  plan.maps      = layout.take<GradientMaps>(1);
  plan.next_item = layout.take<std::int32_t>(1);
  plan.turns     = layout.take<std::int32_t>(p.batch * plan.slots * p.heads * crew_halves(dim));
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
