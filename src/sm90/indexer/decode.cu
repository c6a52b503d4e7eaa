#include "sm90/indexer/decode.hpp"

#include "sm90/indexer/decode_load.cuh"
#include "sm90/indexer/decode_score.cuh"
#include "sm90/indexer/decode_select.cuh"
#include "sm90/launch.cuh"

// indexer_topk for few queries against many keys: one kernel, after one that zeroes its counters.
//
// A team has a tile of queries and a part of the keys.  Two warps load keys, two warpgroups multiply them with the queries, store the
// scores and count the first ones in bins; one warp joins these counts with the other teams' and finds the bins from which the k best come
// while the rest is multiplied.  At the end the math warps list what lies there, and the last team sorts it.

namespace Tributary::Impl::SM90 {
namespace {

// Named barriers; 0 is the selection's.
constexpr int turn_barrier = 1, group_barrier = 3, math_barrier = 5;

template <class Row, int Columns>
class DecodeMath {
 public:
  using Scoring = DecodeScoring<Row, Columns>;

  __device__ DecodeMath(const DecodeCall& call, const KeyPart& part, DecodeState& state, unsigned char* scratch, int warp, int lane)
      : call_(call),
        part_(part),
        state_(state),
        scratch_(scratch),
        group_(warp / 4),
        warp_(warp % 4),
        lane_(lane),
        own_queries_(call.plan.groups == 2 ? group_ : 0),
        first_row_(own_queries_ * (Columns / call.problem.heads)) {}

  __device__ void run() {
    const IndexerProblem& p = call_.problem;
    Scoring::share_weights(state_.weights[group_], p, part_.batch, part_.first_row + first_row_, warp_ * 32 + lane_);
    load_queries<Row>(call_, part_, scratch_, group_ * 128 + warp_ * 32 + lane_);
    ptx::bar_sync(math_barrier, decode::math_threads);
    if (part_.tiles > 0) score_tiles();
    if (!counted_ && lane_ == 0) ptx::mbarrier_arrive(&state_.counted);
    __syncwarp();
    ptx::mbarrier_wait(&state_.chosen, 0);
    ptx::bar_sync(math_barrier, decode::math_threads);
  }

 private:
  __device__ void score_tiles() {
    using Accumulator               = typename Scoring::Accumulator;
    constexpr bool      takes_turns = Columns == 256;  // where the tensor cores are the limit
    const Scoring       scoring{state_.weights[group_], call_.problem.heads == 64};
    const std::uint64_t keys_descriptor = ptx::matrix_descriptor<decode::panel_bytes>(ptx::shared_address(scratch_ + call_.scratch.keys));
    const std::uint64_t queries_descriptor = ptx::matrix_descriptor<decode::panel_bytes>(
        ptx::shared_address(scratch_ + own_queries_ * (Columns * Row::panels * decode::panel_bytes)));
    // Tile 0 is the sample.  Both warpgroups take every tile, each with its queries, or every other one.
    const int              step = call_.plan.groups == 2 ? 1 : 2, first = call_.plan.groups == 2 ? 0 : group_;
    int                    slot = first, last = -1;
    std::uint32_t          round = 0;
    Accumulator            accumulator;
    typename Scoring::Sums sum;
    if (takes_turns && group_ == 1) ptx::bar_arrive(turn_barrier, decode::math_threads);
    for (int tile = first; tile <= part_.tiles; tile += step) {
      ptx::mbarrier_wait(&state_.keys_full[slot], round);  // the one before has completed: stages fill in order
      ptx::fence_proxy_async();
      __syncwarp();
      if (takes_turns) ptx::bar_sync(turn_barrier + group_, decode::math_threads);
      Scoring::multiply(accumulator, keys_descriptor + slot * (Row::tile_bytes / 16), queries_descriptor);
      if (takes_turns) ptx::bar_arrive(turn_barrier + (group_ ^ 1), decode::math_threads);
      if (last >= 0) finish_tile(scoring, sum, last, step);
      last = tile;
      if constexpr (Row::scaled)
        for (int i = 0; i < 2; ++i) scales_[i] = state_.key_scales[slot][key_of(i)];
      __syncwarp();
      ptx::wgmma_wait_group<0>();
      ptx::pin(accumulator);
      if (lane_ == 0) ptx::mbarrier_arrive(&state_.keys_empty[slot]);
      scoring.sum_heads(accumulator, sum, lane_);
      slot += step;
      if (slot >= call_.scratch.stages) slot -= call_.scratch.stages, round ^= 1;
    }
    if (last >= 0) finish_tile(scoring, sum, last, step);
  }

  /// A tile's sums become scores.
  __device__ void finish_tile(const Scoring& scoring, const typename Scoring::Sums& sum, int tile, int step) {
    if (tile == 0) {
      take_sample(scoring, sum);
    } else {
      if (!placed_) ptx::mbarrier_wait(&state_.bins_placed[own_queries_], 0);
      placed_ = true;
      store_scores(scoring, sum, tile);
    }
    if (!counted_ && tile + step > part_.counted_tiles) {
      counted_ = true;
      __syncwarp();
      if (lane_ == 0) ptx::mbarrier_arrive(&state_.counted);
    }
  }

  /// The key of the first or the second of this lane's rows of the accumulator.
  __device__ int key_of(int which) const { return warp_ * 16 + which * 8 + (lane_ >> 2); }

  __device__ void take_sample(const Scoring& scoring, const typename Scoring::Sums& sum) {
    scoring.for_each_score(sum, lane_, [&](int row, int which, float score) {
      const int          place = key_of(which);
      const std::int32_t key   = part_.sample_key(place);
      const RowKeys      keys  = state_.rows[first_row_ + row];
      if constexpr (Row::scaled) score *= which == 0 ? scales_[0] : scales_[1];
      state_.sample[first_row_ + row][place] = keys.begin <= key && key < keys.end ? score : __int_as_float(0x7fc00000);
    });
    ptx::bar_sync(group_barrier + group_, 128);
    for (int row = first_row_ + warp_; row < first_row_ + Columns / call_.problem.heads; row += 4) {
      const DecodeBins bins_of_row = place_bins(state_.sample[row], lane_);
      if (lane_ == 0) state_.row_bins[row] = bins_of_row;
    }
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(&state_.bins_placed[own_queries_]);
  }

  __device__ void store_scores(const Scoring& scoring, const typename Scoring::Sums& sum, int tile) {
    const std::int32_t first      = part_.begin + (tile - 1) * decode::keys;
    const bool         is_counted = tile <= part_.counted_tiles;
    float* const       far        = call_.plan.scores + static_cast<std::int64_t>(part_.tile) * call_.plan.tile_rows * call_.plan.score_row;
    float* const       near       = reinterpret_cast<float*>(scratch_ + call_.scratch.scores);
    auto* const        histogram  = reinterpret_cast<std::uint32_t*>(scratch_ + call_.scratch.histogram);
    scoring.for_each_score(sum, lane_, [&](int row_of_group, int which, float score) {
      const std::int32_t key = first + key_of(which);
      const int          row = first_row_ + row_of_group;
      if (key >= part_.end) return;
      if constexpr (Row::scaled) score *= which == 0 ? scales_[0] : scales_[1];
      far[row * call_.plan.score_row + (key - part_.hull_begin)] = score;
      if (call_.scratch.score_row != 0) near[row * call_.scratch.score_row + (key - part_.begin)] = score;
      const RowKeys keys = state_.rows[row];
      if (is_counted && keys.begin <= key && key < keys.end) atomicAdd(histogram + row * decode::bins + state_.row_bins[row](score), 1u);
    });
  }

  const DecodeCall& call_;
  const KeyPart&    part_;
  DecodeState&      state_;
  unsigned char*    scratch_;
  const int         group_, warp_, lane_, own_queries_, first_row_;
  float             scales_[2] = {1.0f, 1.0f};
  bool              placed_ = false, counted_ = false;
};

template <class Row, int Columns>
struct DecodeFunctor {
  DecodeCall call;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    KOKKOS_IF_ON_DEVICE((run(team);))
    KOKKOS_IF_ON_HOST((static_cast<void>(team);))
  }

 private:
  __device__ void run(const Member& team) const {
    unsigned char* const scratch = aligned_scratch(team, call.scratch.end);
    auto&                state   = *reinterpret_cast<DecodeState*>(scratch + call.scratch.state);
    const int            thread = thread_of_team(), warp = __shfl_sync(0xffffffffu, thread / 32, 0), lane = thread % 32;
    RowKeys              own_row;
    const KeyPart        part(call, team.league_rank(), lane, own_row);
    if (warp == 0 && lane < call.plan.tile_rows) {
      state.rows[lane]   = own_row;
      state.listed[lane] = 0;
    }
    auto* const histogram = reinterpret_cast<std::uint32_t*>(scratch + call.scratch.histogram);
    for (int i = thread; i < call.plan.tile_rows * decode::bins; i += decode::team_threads) histogram[i] = 0;
    if (thread == 0) initialise(state);
    __syncthreads();
    // One branch a warpgroup: each divides the registers once.
    if (warp < decode::math_warps) {
      ptx::setmaxnreg_inc<decode::math_registers>();
      DecodeMath<Row, Columns>(call, part, state, scratch, warp, lane).run();
      const DecodeSelection selection{call, part, state, scratch};
      selection.list_candidates();
      selection.select_rows();
    } else {
      ptx::setmaxnreg_dec<decode::other_registers>();
      if (warp < decode::load_warp + decode::load_threads / 32)
        load_keys<Row>(call, part, state, scratch, thread - decode::math_threads);
      else if (warp == decode::count_warp)
        count_scores(call, part, state, scratch, lane);
    }
    exit_thread();
  }

  __device__ void initialise(DecodeState& state) const {
    for (int i = 0; i < call.scratch.stages; ++i) {
      ptx::mbarrier_init(&state.keys_full[i], decode::load_threads);
      ptx::mbarrier_init(&state.keys_empty[i], 4 * call.plan.groups);
    }
    for (std::uint64_t& placed : state.bins_placed) ptx::mbarrier_init(&placed, 4);
    ptx::mbarrier_init(&state.counted, decode::math_warps);
    ptx::mbarrier_init(&state.chosen, 1);
    ptx::fence_mbarrier_init();
  }
};

struct Zero {
  std::uint32_t*       words;
  KOKKOS_FUNCTION void operator()(std::int64_t i) const { words[i] = 0; }
};

template <class Row, int Columns>
DecodeScratch divide_scratch(const DecodePlan& plan, const IndexerProblem& p) {
  const auto    round_up        = [](int bytes) { return (bytes + 127) / 128 * 128; };
  constexpr int budget          = (largest_scratch(decode::team_warps) - scratch_alignment) / 128 * 128;
  const int     histogram_bytes = plan.tile_rows * decode::bins * 4, state_bytes = round_up(sizeof(DecodeState));
  DecodeScratch scratch{};
  scratch.keys   = plan.groups * Columns * Row::panels * decode::panel_bytes;
  const int rest = budget - scratch.keys - histogram_bytes - state_bytes;
  // A part's scores, where they leave eight tiles or more in flight.
  const std::int64_t score_row   = (p.keys / plan.splits + 1 + 7) / 4 * 4;
  const std::int64_t score_bytes = (plan.tile_rows * score_row * 4 + 127) / 128 * 128;
  const bool         near        = rest - score_bytes >= 8 * Row::tile_bytes;
  scratch.score_row              = near ? static_cast<std::int32_t>(score_row) : 0;
  const int score_part           = near ? static_cast<int>(score_bytes) : 0;
  scratch.stages                 = std::min((rest - score_part) / Row::tile_bytes, decode::most_stages);
  scratch.scores                 = scratch.keys + scratch.stages * Row::tile_bytes;
  scratch.histogram              = scratch.scores + score_part;
  scratch.state                  = scratch.histogram + histogram_bytes;
  scratch.end                    = scratch.state + state_bytes;
  return scratch;
}

template <class Row, int Columns>
void run(const Kokkos::Cuda& exec, const IndexerProblem& problem, const DecodePlan& plan, const TopkOutput& output) {
  const DecodeCall call{problem, plan, divide_scratch<Row, Columns>(plan, problem), output};
  launch_teams<decode::team_threads, 1>("Tributary::indexer_topk::hopper_decode", exec,
                                        static_cast<int>(problem.batch * plan.tiles * plan.splits), call.scratch.end,
                                        DecodeFunctor<Row, Columns>{call});
}

// The instantiations of this level.
template <class Element, int HeadDim>
void run_columns(const Kokkos::Cuda& exec, const IndexerProblem& problem, const DecodePlan& plan, const TopkOutput& output) {
  using Row = DecodeRow<Element, HeadDim>;
  if (plan.columns == 64) return run<Row, 64>(exec, problem, plan, output);
  if (plan.columns == 128) return run<Row, 128>(exec, problem, plan, output);
  run<Row, 256>(exec, problem, plan, output);
}

}  // namespace

template <class Exec>
DecodePlan plan_decode(const Exec& exec, const IndexerProblem& p, std::int64_t top_k, WorkspaceLayout& layout) {
  DecodePlan plan{};
  shape_decode(plan, p);
  const std::int64_t tiles = p.batch * plan.tiles, rows = plan.rows(p.batch), processors = exec.cuda_device_prop().multiProcessorCount;
  plan.splits = static_cast<std::int32_t>(tiles == 0 ? 1 : std::max<std::int64_t>(1, processors / tiles));
  plan.keep   = static_cast<std::int32_t>(std::max<std::int64_t>(1, std::min(top_k, p.keys)));
  // Of scores in random order some 3/2 k become candidates; the more there is room for, the more crowded the bins may be.
  const std::int64_t usual = plan.keep <= 1024 ? 4096 : 6144, share = (14 << 20) / 8 / std::max<std::int64_t>(rows, 1);
  plan.list_capacity = static_cast<std::int32_t>(std::clamp<std::int64_t>(share, plan.keep + plan.keep / 2 + 512, usual));
  plan.pool_capacity = std::max(pool_sizes(plan.keep, p.keys).capacity, plan.list_capacity);
  plan.score_row     = (p.keys + 3) / 4 * 4;
  plan.scores        = layout.take<float>(rows * plan.score_row);
  plan.candidates    = layout.take<Entry>(rows * plan.list_capacity);
  plan.zero_count    = rows * (decode::bins + 2) + tiles * 2;
  plan.zeros         = layout.take<std::uint32_t>(plan.zero_count);
  plan.histogram     = plan.zeros;
  plan.listed        = plan.histogram + rows * decode::bins;
  plan.owner         = plan.listed + rows;
  plan.counted       = reinterpret_cast<std::int32_t*>(plan.owner + rows);
  plan.finished      = plan.counted + tiles;
  return plan;
}

template <class Exec>
void decode_topk(const Exec& exec, const IndexerProblem& problem, const DecodePlan& plan, const TopkOutput& output) {
  if (problem.batch * plan.tiles == 0) return;
  Kokkos::parallel_for("Tributary::indexer_topk::hopper_decode_prepare", ElementPolicy<Exec>(exec, 0, plan.zero_count), Zero{plan.zeros});
  visit_element_type(problem.type, [&]<class Element>(std::type_identity<Element>) {
    if constexpr (!std::is_same_v<Element, float>) {
      if (problem.head_dim == 128)
        run_columns<Element, 128>(exec, problem, plan, output);
      else
        run_columns<Element, 64>(exec, problem, plan, output);
    }
  });
}

template DecodePlan plan_decode(const Kokkos::Cuda&, const IndexerProblem&, std::int64_t, WorkspaceLayout&);
template void       decode_topk(const Kokkos::Cuda&, const IndexerProblem&, const DecodePlan&, const TopkOutput&);

}  // namespace Tributary::Impl::SM90
