#include "sm90/indexer/indexer.hpp"

#include <algorithm>
#include <limits>

#include "sm90/indexer/collect.cuh"
#include "sm90/indexer/load.cuh"
#include "sm90/indexer/score.cuh"
#include "sm90/indexer/store.cuh"
#include "sm90/prepare.cuh"
#include "sm90/roles.cuh"
#include "sm90/tensor_map.hpp"

// Scores of tiles of queries against a stream of key tiles, and the k best keys of every query.
//
// One team an SM draws work items.  A warp loads; two warpgroups take turns at the tensor cores, each with its own queries and a register
// file full of products, which it reduces while the other multiplies; it keeps the scores that are not below their row's threshold, which
// one warp raises, and sorts them at the item's end.  The warps hand over to each other by mbarriers.

namespace Tributary::Impl::SM90 {
namespace {

/// \tparam Sink  what becomes of the scores: Collector or ScoreStore
template <class Tile, class Sink>
__device__ void score(const IndexerCall& call, SharedState<Tile>& shared, unsigned char* scratch, int team, int warp, int lane) {
  const int           group = warp / 4, warp_in_group = warp % 4;
  const std::uint64_t keys_descriptor = ptx::matrix_descriptor<Tile::panel_bytes>(ptx::shared_address(scratch + Tile::keys_offset));
  const std::uint64_t queries_descriptor =
      ptx::matrix_descriptor<Tile::panel_bytes>(ptx::shared_address(scratch + group * Tile::group_offset));
  Sink                       sink(call, shared, scratch, team, warp, lane);
  RingPosition<Tile::stages> stage;
  std::uint32_t              round   = 0;
  const int                  my_turn = 1 + group, other_turn = 2 - group;  // named barriers: whose turn it is to multiply
  if (group == 1) ptx::bar_arrive(other_turn, 256);
  for (RingPosition<2> item_at;; item_at.next(), round ^= 1) {
    ptx::mbarrier_wait(&shared.item_full[item_at.slot], item_at.round);
    const auto& item  = shared.items[item_at.slot];
    const int   batch = item.batch, key_tiles = item.key_tiles;
    if (batch < 0) break;
    const int shared_queries = Sink::shares_queries && item.shared ? 1 : 0, first_tile = shared_queries & group;
    sink.begin(item_at.slot);
    Scoring<Tile> scoring;
    scoring.load_weights(call.problem, batch, item.row + item.first_row(group), lane);
    float                             accumulator[128], sum[2][Tile::group_queries];
    typename Scoring<Tile>::KeyScales key_scales;  // of the tile whose sums these are
    std::int32_t                      first_key = 0;
    std::uint32_t                     full      = 0;  // rows to be cut before the next tile
    const auto                        take      = [&](int j) {
      typename Scoring<Tile>::Scores scores;
      Scoring<Tile>::add_lanes(sum, key_scales, scores, lane);
      sink.take(j, key_tiles, scores, first_key);
    };
    ptx::mbarrier_wait(&shared.queries_full[group], round);
    for (int j = 0; j < key_tiles; ++j, stage.next()) {
      if (((j ^ group) & shared_queries) != 0) continue;  // the other one's, which also releases it
      if constexpr (!Sink::shares_queries) ptx::mbarrier_wait(&shared.keys_full[stage.slot], stage.round);
      if constexpr (Sink::collects)
        if (full != 0) [[unlikely]]
          sink.cut_rows(j, full);
      const std::uint32_t key   = ptx::uniform_low(keys_descriptor + stage.slot * (Tile::key_bytes / 16));
      const std::uint32_t query = ptx::uniform_low(queries_descriptor);
      __syncwarp();  // wgmma and its barriers want whole warps
      ptx::bar_sync(my_turn, 256);
      // Not before the turn: then the other warpgroup has seen the tile before this one, and if the stage's last tile was its own, that
      // one, too.  So this one's phase is the next to complete.
      if constexpr (Sink::shares_queries) {
        ptx::mbarrier_wait(&shared.keys_full[stage.slot], stage.round);
        __syncwarp();
      }
      Scoring<Tile>::multiply(accumulator, key, query);
      ptx::bar_arrive(other_turn, 256);
      if (j > first_tile && j > Sink::opening) take(j - 1);  // the tile before, while this one is multiplied
      first_key = shared.stage_key[stage.slot];
      if constexpr (Tile::has_scales) key_scales.read(shared.key_scales[stage.slot], warp_in_group, lane);
      __syncwarp();
      ptx::wgmma_wait_group<0>();
      ptx::pin(accumulator);
      if (lane == 0) ptx::mbarrier_arrive(&shared.keys_empty[stage.slot], 1 + shared_queries);
      if constexpr (Sink::collects) full = sink.full_rows(j + 1);
      scoring.sum_heads(accumulator, sum);
      if constexpr (Sink::collects)
        if (j < Sink::opening) [[unlikely]] {  // now, when the accumulators leave room for it
          typename Scoring<Tile>::Scores scores;
          Scoring<Tile>::add_lanes(sum, key_scales, scores, lane);
          sink.open(j, key_tiles, scores, first_key);
        }
    }
    if (key_tiles > first_tile && key_tiles > Sink::opening) take(key_tiles - 1);
    if ((first_tile & key_tiles) != 0) {  // as many turns as the other one
      __syncwarp();
      ptx::bar_sync(my_turn, 256);
      ptx::bar_arrive(other_turn, 256);
    }
    sink.finish();
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.queries_empty[group]);
  }
  if (lane == 0) atomicSub(&shared.math_warps_left, 1);
}

template <class Tile, class Sink>
struct IndexerKernel {
  IndexerCall call;

  KOKKOS_INLINE_FUNCTION static constexpr int scratch_bytes() { return Tile::scratch_bytes; }

  __device__ void run(const Member& team, unsigned char* scratch, int warp, int lane) const {
    auto& shared = *reinterpret_cast<SharedState<Tile>*>(scratch + Tile::state_offset);
    static_assert(sizeof(shared) <= Tile::state_bytes);
    if (thread_of_team() == 0) initialise(shared);
    __syncthreads();
    // One branch a warpgroup: each divides the registers once.
    if (warp < math_warps) {
      ptx::setmaxnreg_inc<math_registers>();
      score<Tile, Sink>(call, shared, scratch, team.league_rank(), warp, lane);
    } else {
      ptx::setmaxnreg_dec<other_registers>();
      if (warp == load_warp)
        load<Tile>(call, shared, scratch, team.league_rank(), team.league_size(), lane);
      else if (Sink::collects && warp == threshold_warp)
        raise_thresholds<Tile>(call, shared, scratch, lane);
      else if (Tile::has_scales && warp == scale_warp)
        load_scales<Tile>(call, shared, lane);
    }
  }

 private:
  __device__ static void initialise(SharedState<Tile>& shared) {
    for (int i = 0; i < Tile::stages; ++i) {
      ptx::mbarrier_init(&shared.keys_full[i], Tile::has_scales ? 2 : 1);
      ptx::mbarrier_init(&shared.keys_empty[i], math_warps);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(&shared.queries_full[i], 1);
      ptx::mbarrier_init(&shared.queries_empty[i], math_warps / 2);
      ptx::mbarrier_init(&shared.item_full[i], 1);
      if (Tile::has_scales) ptx::mbarrier_init(&shared.scales_know[i], 1);
      shared.full[0][i] = shared.full[1][i] = 0;
    }
    for (RowState& row : shared.rows) row.count = 0;
    for (RejectedScore& rejected : shared.rejected) rejected.epoch = -1;
    shared.math_warps_left = math_warps;
    ptx::fence_mbarrier_init();
  }
};

template <class Tile>
void run(const char* label, const Kokkos::Cuda& exec, const IndexerCall& call) {
  const IndexerProblem& p     = call.problem;
  constexpr int         panel = Tile::head_dim / Tile::panels;
  const TensorMaps      maps{
           .query = tensor_map<4>(p.type, p.query,
                             {.extents = {p.head_dim, p.heads, p.queries, p.batch},
                                   .strides = {p.query_strides[2], p.query_strides[1], p.query_strides[0]},
                                   .box     = {panel, Tile::heads, Tile::group_queries, 1}}),
           .key   = tensor_map<3>(
          p.type, p.keys > 0 ? p.key : p.query,
          {.extents = {p.head_dim, p.keys, p.batch}, .strides = {p.key_strides[1], p.key_strides[0]}, .box = {panel, Tile::keys, 1}})};
  prepare_maps("Tributary::indexer::hopper::prepare", exec, maps, call.plan.maps, call.plan.next_item);
  const auto launch = [&]<class Sink>(std::type_identity<Sink>) {
    launch_roles<team_threads>(label, exec, call.plan.teams, IndexerKernel<Tile, Sink>{call});
  };
  if (call.scores == nullptr)
    launch(std::type_identity<Collector<Tile>>{});
  else
    launch(std::type_identity<ScoreStore<Tile>>{});
}

// The instantiations of this level.
template <class Element, int Heads>
void run_dimensions(const char* label, const Kokkos::Cuda& exec, const IndexerCall& call) {
  if (call.problem.head_dim == 128)
    run<IndexerTile<Element, Heads, 128>>(label, exec, call);
  else
    run<IndexerTile<Element, Heads, 64>>(label, exec, call);
}

void run_any(const char* label, const Kokkos::Cuda& exec, const IndexerCall& call) {
  if (call.plan.items(call.problem.batch) == 0) return;
  visit_element_type(call.problem.type, [&]<class Element>(std::type_identity<Element>) {
    if constexpr (!std::is_same_v<Element, float>) {
      if (call.problem.heads == 64)
        run_dimensions<Element, 64>(label, exec, call);
      else
        run_dimensions<Element, 32>(label, exec, call);
    }
  });
}

/// Parts of a tile's keys where scores are stored and none are merged: those with which the work ends soonest.  Work goes in waves of a
/// part an SM, of its key tiles and some four more, until its queries have come and its last scores are stored.
std::int64_t splits_that_fill(std::int64_t tiles, std::int64_t key_tiles, std::int64_t processors) {
  constexpr std::int64_t start = 4;
  std::int64_t           best = 1, least = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t splits = 1; splits <= std::min(processors, key_tiles); ++splits) {
    const std::int64_t waves = (tiles * splits + processors - 1) / processors, time = waves * ((key_tiles + splits - 1) / splits + start);
    if (time <= least) best = splits, least = time;
  }
  return best;
}

/// Parts of a tile's keys where each leaves a list: for few tiles, so that the parts fill the chip; none shorter than a few key tiles, or
/// than four times k, which each part leaves.
std::int64_t splits_to_merge(std::int64_t tiles, std::int64_t keys, std::int64_t top_k, std::int64_t processors) {
  if (tiles == 0 || tiles > processors / 2) return 1;
  return std::min(processors / tiles, std::max<std::int64_t>(1, keys / std::max<std::int64_t>(256, 4 * top_k)));
}

}  // namespace

template <class Exec>
std::string no_indexer(const Exec&, const IndexerProblem& p, std::int64_t top_k) {
  const std::int64_t element_size = p.type == ElementType::float8_e4m3 ? 1 : 2;
  if (p.type == ElementType::float32) return "the element type is float";
  if (p.heads != 32 && p.heads != 64) return "it takes 32 or 64 heads, not " + std::to_string(p.heads);
  if (p.head_dim != 64 && p.head_dim != 128) return "it takes a head dimension of 64 or 128, not " + std::to_string(p.head_dim);
  if (top_k > 2048) return "k is " + std::to_string(top_k) + ", more than 2048";
  if (p.queries > 0x7fffff00 || p.batch > 0x7fffffff) return "there are more than 2^31 queries";
  const std::string reason = no_whole_vectors("query", p.query, {p.batch, p.queries, p.heads}, p.query_strides, element_size);
  return reason.empty() ? no_whole_vectors("key", p.key, {p.batch, p.keys}, p.key_strides, element_size) : reason;
}

template <class Exec>
IndexerPlan plan_indexer(const Exec& exec, const IndexerProblem& p, std::int64_t top_k, std::int64_t key_splits, WorkspaceLayout& layout) {
  const std::int64_t processors = exec.cuda_device_prop().multiProcessorCount;
  IndexerPlan        plan{};
  plan.tiles               = query_tiles(p);
  const std::int64_t tiles = p.batch * plan.tiles, key_tiles = (p.keys + tile_keys - 1) / tile_keys;
  // A key tile each, and no more of all than a queue of 2^31 holds.
  const std::int64_t most = std::max<std::int64_t>(1, std::min(key_tiles, 0x7fff0000 / std::max<std::int64_t>(tiles, 1)));
  plan.splits             = static_cast<std::int32_t>(key_splits > 0 ? std::min(key_splits, most)
                                                      : top_k == 0   ? splits_that_fill(tiles, key_tiles, processors)
                                                                     : splits_to_merge(tiles, p.keys, top_k, processors));
  plan.teams              = static_cast<std::int32_t>(std::min(processors, plan.items(p.batch)));
  // Shuffled keys bring about k (1 + ln(n / k)) candidates: the buffer holds those of some 300,000 keys at k 1024, of 100,000 at k 2048.
  // When it is full it is cut.
  plan.capacity   = top_k == 0 ? 0 : (top_k <= 1024 ? 7168 : 10240);
  plan.maps       = layout.take<TensorMaps>(1);
  plan.next_item  = layout.take<std::int32_t>(1);
  plan.candidates = layout.take<std::uint64_t>(plan.teams * tile_queries(p) * plan.capacity);
  return plan;
}

template <class Exec>
void indexer_topk(const Exec& exec, const IndexerProblem& problem, const IndexerPlan& plan, const TopkOutput& output, Entry* partials,
                  std::int64_t keep) {
  run_any("Tributary::indexer_topk::hopper", exec,
          {.problem       = problem,
           .plan          = plan,
           .output        = output,
           .partials      = partials,
           .keep          = keep,
           .scores        = nullptr,
           .score_strides = {},
           .score_columns = 0});
}

template <class Exec>
void indexer_score(const Exec& exec, const IndexerProblem& problem, const IndexerPlan& plan, const Tensor<float, 3>& scores) {
  run_any("Tributary::indexer_score::hopper", exec,
          {.problem       = problem,
           .plan          = plan,
           .output        = {},
           .partials      = nullptr,
           .keep          = 0,
           .scores        = scores.data,
           .score_strides = {scores.strides[0], scores.strides[1]},
           .score_columns = scores.extents[2]});
}

using Space = Kokkos::Cuda;
template std::string no_indexer(const Space&, const IndexerProblem&, std::int64_t);
template IndexerPlan plan_indexer(const Space&, const IndexerProblem&, std::int64_t, std::int64_t, WorkspaceLayout&);
template void        indexer_topk(const Space&, const IndexerProblem&, const IndexerPlan&, const TopkOutput&, Entry*, std::int64_t);
template void        indexer_score(const Space&, const IndexerProblem&, const IndexerPlan&, const Tensor<float, 3>&);

}  // namespace Tributary::Impl::SM90
