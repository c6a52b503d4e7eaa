#include "sm90/indexer/decode.hpp"

#include <limits>

#include "sm90/indexer/decode_load.cuh"
#include "sm90/indexer/decode_score.cuh"
#include "sm90/indexer/decode_select.cuh"
#include "sm90/roles.cuh"
#include "sm90/tensor_map.hpp"

// indexer_topk for few queries against many keys: one kernel, after one that zeroes its counters.
//
// A team has a tile of queries and shares the tile's keys with other teams.  A warp loads key tiles, four warpgroups multiply them with the
// queries and store the scores; those of the first tiles are counted in bins.  Three warps join these counts with the other teams' and find
// the bins from which the k best come while the rest is multiplied; what lies there is listed, and the last team sorts the list.

namespace Tributary::Impl::SM90 {
namespace {

template <class Row, int Columns>
class DecodeMath {
 public:
  using Scoring = DecodeScoring<Row, Columns>;

  __device__ DecodeMath(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, unsigned char* scratch, int warp, int lane)
      : call_(call), tile_(tile), state_(state), scratch_(scratch), warp_(warp), lane_(lane), role_(call.plan.groups, warp / 4) {
    const int rows = Columns / call.problem.heads;
    first_row_     = role_.columns_group * rows;
    row_           = first_row_ + (lane & (rows - 1));
  }

  __device__ void run() {
    Scoring::share_weights(state_.weights[warp_ / 4], call_.problem, tile_.batch, tile_.first_row + first_row_, warp_ % 4 * 32 + lane_);
    ptx::bar_sync(decode::group_barrier + warp_ / 4, 128);
    ptx::mbarrier_wait(&state_.queries_full, 0);
    const RowKeys keys = state_.rows[row_];
    legal_begin_       = static_cast<unsigned>(keys.begin - tile_.hull_begin);
    legal_count_       = static_cast<unsigned>(keys.end - keys.begin);
    first_score_       = static_cast<unsigned>(tile_.scores(call_, row_) - call_.plan.scores);
    ptx::forget(legal_begin_), ptx::forget(legal_count_), ptx::forget(first_score_);  // not worked out again for every tile
    score_tiles();
    if (!listing_) {
      __syncwarp();
      if (lane_ == 0) {
        state_.first_listed[warp_] = 0x7fffffff;
        ptx::mbarrier_arrive(&state_.switched);
      }
    }
    __syncwarp();
    list_earlier(call_, tile_, state_, lane_);
  }

 private:
  __device__ void score_tiles() {
    const Scoring       scoring{state_.weights[warp_ / 4], call_.problem.heads == 64};
    const std::uint64_t keys_descriptor = ptx::matrix_descriptor<Row::panel_bytes>(ptx::shared_address(scratch_ + call_.scratch.keys));
    const std::uint64_t queries_descriptor =
        ptx::matrix_descriptor<Row::panel_bytes>(ptx::shared_address(scratch_ + role_.columns_group * (Columns * Row::bytes)));
    int                           slot      = role_.first;
    std::uint32_t                 round     = 0;
    bool                          is_sample = role_.first == 0 && tile_.key_tiles > 0;
    typename Scoring::Accumulator accumulator;
    typename Scoring::Sums        sum;
    for (int index = role_.first;; index += role_.step) {
      if (is_sample) {
        ptx::mbarrier_wait(&state_.sample_full, 0);
        ptx::fence_proxy_async();
      } else {
        ptx::mbarrier_wait(&state_.keys_full[slot], round);
      }
      const StagedTile staged{is_sample ? 0 : state_.stage_tile[slot].word};
      if (staged.is_end()) break;
      __syncwarp();
      Scoring::multiply(accumulator, keys_descriptor + slot * (Row::tile_bytes / 16), queries_descriptor);
      if constexpr (Row::scaled)
        for (int i = 0; i < 2; ++i) scales_[i] = state_.key_scales[slot][key_of(i)];
      ptx::wgmma_wait_group<0>();
      ptx::pin(accumulator);
      __syncwarp();  // all lanes have their scales
      if (lane_ == 0) ptx::mbarrier_arrive(&state_.keys_empty[slot]);
      scoring.sum_heads(accumulator, sum, lane_);
      // Four warpgroups: while one finishes its scores the others' products keep the tensor cores busy.
      if (is_sample) {
        take_sample(scoring, sum);
      } else {
        advance(index, staged);
        store_scores(scoring, sum, staged);
      }
      is_sample = false;
      slot += role_.step;
      if (slot >= call_.scratch.stages) slot -= call_.scratch.stages, round ^= 1;
    }
    if (!counted_) arrive_counted();
  }

  __device__ void arrive_counted() {
    counted_ = true;
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(&state_.counted);
  }

  /// Before the scores of the team's `index`th tile: learns the bins, says that all that is to be counted is, lists candidates from here
  /// on.
  __device__ void advance(int index, StagedTile staged) {
    if (!placed_) {
      ptx::mbarrier_wait(&state_.bins_placed[role_.columns_group], 0);
      placed_ = true;
      bins_   = state_.row_bins[row_];
    }
    if (!counted_ && !staged.is_counted()) arrive_counted();
    if (counted_ && !listing_ &&
        __any_sync(0xffffffffu, *const_cast<const volatile std::int32_t*>(&state_.is_chosen) == decode::count_warps))
      list_from(index);
  }

  __device__ void list_from(int index) {
    __threadfence_block();
    __syncwarp();  // not every lane has seen it
    listing_ = true;
    least_   = state_.least[row_];
    if (lane_ == 0) {
      state_.first_listed[warp_] = index;
      ptx::mbarrier_arrive(&state_.switched);
    }
  }

  /// The key, in its tile, of the first or the second of this lane's rows of the accumulator.
  __device__ int key_of(int which) const { return warp_ % 4 * 16 + which * 8 + (lane_ >> 2); }

  __device__ void take_sample(const Scoring& scoring, const typename Scoring::Sums& sum) {
    std::int32_t own_row = row_, first = key_of(0);
    ptx::forget(own_row), ptx::forget(first);  // what follows from them is wanted once: it is to keep no registers
    const RowKeys       keys   = state_.rows[own_row];
    DecodeSample* const sample = reinterpret_cast<DecodeSample*>(scratch_ + call_.scratch.sample);
    scoring.for_each_score(sum, lane_, [&](int which, float score) {
      const int          place = first + which * 8;
      const std::int32_t key   = tile_.sample_key(place);
      if constexpr (Row::scaled) score *= which == 0 ? scales_[0] : scales_[1];
      sample[own_row][place] = keys.begin <= key && key < keys.end ? score : __int_as_float(0x7fc00000);
    });
    ptx::bar_sync(decode::group_barrier + warp_ / 4, 128);
    for (int row = first_row_ + warp_ % 4; row < first_row_ + Columns / call_.problem.heads; row += 4) {
      const DecodeBins bins_of_row = place_bins(sample[row], lane_);
      if (lane_ == 0) state_.row_bins[row] = bins_of_row;
    }
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(&state_.bins_placed[role_.columns_group]);
  }

  __device__ void store_scores(const Scoring& scoring, const typename Scoring::Sums& sum, StagedTile staged) {
    const unsigned first = static_cast<unsigned>(staged.number()) * decode::keys;
    scoring.for_each_score(sum, lane_, [&](int which, float score) {
      const unsigned at = first + key_of(which);  // in the hull
      if (at - legal_begin_ >= legal_count_) return;
      if constexpr (Row::scaled) score *= which == 0 ? scales_[0] : scales_[1];
      call_.plan.scores[first_score_ + at] = score;
      const float position                 = bins_.position(score);
      if (staged.is_counted()) atomicAdd(histogram() + DecodeBins::bin<1>(position), 1u);
      if (DecodeBins::reaches(position, least_)) list(sortable(score), at);
    });
  }
  __device__ std::uint32_t* histogram() const {
    return reinterpret_cast<std::uint32_t*>(scratch_ + call_.scratch.histogram) + row_ * decode::bins;
  }

  __device__ void list(std::uint32_t image, unsigned at) const {
    std::int32_t row = row_;
    ptx::forget(row);  // what a list's address takes is seldom wanted: it is to keep no registers
    const auto index = static_cast<std::uint32_t>(tile_.hull_begin - state_.rows[row].first_key) + at;
    list_candidate(call_, tile_, state_, row, make_entry(image, index));
  }

  const DecodeCall& call_;
  const DecodeTile& tile_;
  DecodeState&      state_;
  unsigned char*    scratch_;
  const int         warp_, lane_;
  const DecodeRole  role_;
  int               first_row_, row_;  // of the warpgroup; the one that this lane has scores of
  bool              placed_ = false, counted_ = false, listing_ = false;
  // Of this row.
  unsigned   legal_begin_, legal_count_;                            // keys, in the hull
  unsigned   first_score_;                                          // among all; a call's are at most 2^23 (most_score_bytes)
  DecodeBins bins_;                                                 // once they are placed
  float      least_     = std::numeric_limits<float>::quiet_NaN();  // what it lists lies here or higher; NaN: nothing
  float      scales_[2] = {1.0f, 1.0f};
};

template <class Row, int Columns>
struct DecodeKernel {
  DecodeCall call;

  KOKKOS_INLINE_FUNCTION int scratch_bytes() const { return call.scratch.end; }

  __device__ void run(const Member& team, unsigned char* scratch, int warp, int lane) const {
    auto&            state = *reinterpret_cast<DecodeState*>(scratch + call.scratch.state);
    RowKeys          own_row;
    const DecodeTile tile(call, team.league_rank(), lane, own_row);
    if (warp < decode::math_warps)
      initialise(state, scratch, warp, lane, own_row);
    else if (warp == decode::load_warp && lane == 0)
      initialise_ring(state);
    __syncthreads();
    // One branch a warpgroup: each divides the registers once.
    if (warp < decode::math_warps) {
      ptx::setmaxnreg_inc<decode::math_registers>();
      DecodeMath<Row, Columns>(call, tile, state, scratch, warp, lane).run();
      ptx::bar_sync(decode::scored_barrier, decode::math_threads + decode::count_threads);
      DecodeSelection{call, tile, state, scratch}.select_rows();
    } else {
      ptx::setmaxnreg_dec<decode::other_registers>();
      if (warp == decode::load_warp) {
        load_keys<Row>(call, tile, state, scratch, lane);
      } else {
        if (tile.key_tiles > 0) load_sample<Row>(call, tile, state, scratch, (warp - decode::first_count_warp) * 32 + lane);
        count_scores(call, tile, state, scratch, warp - decode::first_count_warp, lane);
        list_earlier(call, tile, state, lane);
        __syncwarp();
        ptx::bar_arrive(decode::scored_barrier, decode::math_threads + decode::count_threads);
      }
    }
  }

 private:
  __device__ void initialise_ring(DecodeState& state) const {
#pragma unroll 1
    for (int i = 0; i < call.scratch.stages; ++i) {
      ptx::mbarrier_init(&state.keys_full[i], Row::scaled ? 33 : 1);
      ptx::mbarrier_init(&state.keys_empty[i], 4 * call.plan.groups);
    }
    ptx::mbarrier_init(&state.sample_full, decode::count_threads);
    ptx::mbarrier_init(&state.queries_full, 1);
    ptx::fence_mbarrier_init();
  }

  __device__ void initialise(DecodeState& state, unsigned char* scratch, int warp, int lane, const RowKeys& own_row) const {
    if (warp == 1 && lane == 0) {
      for (std::uint64_t& placed : state.bins_placed) ptx::mbarrier_init(&placed, 4);
      ptx::mbarrier_init(&state.counted, decode::math_warps);
      ptx::mbarrier_init(&state.chosen, decode::count_warps);
      ptx::mbarrier_init(&state.switched, decode::math_warps);
      ptx::fence_mbarrier_init();
      state.claimed = state.is_chosen = 0;
    }
    if (warp == 0 && lane < call.plan.tile_rows) {
      state.rows[lane]   = own_row;
      state.listed[lane] = 0;
    }
    auto* const histogram = reinterpret_cast<std::uint32_t*>(scratch + call.scratch.histogram);
    for (int i = warp * 32 + lane; i < call.plan.tile_rows * decode::bins; i += decode::math_threads) histogram[i] = 0;
  }
};

/// What the kernel needs in the workspace before it starts.
struct Prepare {
  DecodeMaps     maps;
  DecodeMaps*    to;
  std::uint32_t* zeros;

  KOKKOS_FUNCTION void operator()(std::int64_t i) const {
    if (i == 0) *to = maps;
    zeros[i] = 0;
  }
};

template <class Row, int Columns>
DecodeScratch divide_scratch(const DecodePlan& plan) {
  const auto    round_up        = [](int bytes) { return (bytes + 127) / 128 * 128; };
  constexpr int budget          = (largest_scratch(decode::team_warps) - scratch_alignment) / 128 * 128;
  const int     histogram_bytes = plan.tile_rows * decode::bins * 4, state_bytes = round_up(sizeof(DecodeState));
  DecodeScratch scratch{};
  scratch.keys           = plan.groups * Columns * Row::bytes;
  const int rest         = budget - scratch.keys - histogram_bytes - state_bytes;
  const int sample_bytes = plan.tile_rows * static_cast<int>(sizeof(DecodeSample));
  // A warpgroup has every stage, or always the same ones.
  const int step = decode::math_groups / plan.groups;
  // 48 KiB on their way to an SM keep the memory busy; with more of them all else that goes to memory waits longer.  Measured with 16 KiB a
  // tile; with half of that three tiles are too few, and where tiles are not taken as fast as they come there is nothing to gain.
  scratch.in_flight = plan.groups == 1 && Row::tile_bytes == 16384 ? 3 : most_decode_tiles;
  scratch.stages    = std::min((rest - sample_bytes) / Row::tile_bytes / step * step, decode::most_stages);
  scratch.sample    = scratch.keys + scratch.stages * Row::tile_bytes;
  scratch.histogram = scratch.sample + sample_bytes;
  scratch.state     = budget - state_bytes;  // what selects needs much of what is before it
  scratch.end       = budget;
  return scratch;
}

template <class Row, int Columns>
void run(const Kokkos::Cuda& exec, const IndexerProblem& problem, const DecodePlan& plan, const TopkOutput& output) {
  const CUtensorMap query_map = tensor_map<4>(problem.type, problem.query,
                                              {.extents = {problem.head_dim, problem.heads, problem.queries, problem.batch},
                                               .strides = {problem.query_strides[2], problem.query_strides[1], problem.query_strides[0]},
                                               .box     = {Row::panel_dim, problem.heads, plan.columns / problem.heads, 1}});
  const CUtensorMap key_map   = tensor_map<3>(problem.type, problem.keys > 0 ? problem.key : problem.query,
                                            {.extents = {problem.head_dim, problem.keys, problem.batch},
                                               .strides = {problem.key_strides[1], problem.key_strides[0]},
                                               .box     = {Row::panel_dim, decode::keys, 1}});
  Kokkos::parallel_for("Tributary::indexer_topk::hopper_decode_prepare", ElementPolicy<Kokkos::Cuda>(exec, 0, plan.zero_count),
                       Prepare{{query_map, key_map}, static_cast<DecodeMaps*>(plan.maps), plan.zeros});
  const DecodeCall call{problem, plan, divide_scratch<Row, Columns>(plan), output};
  launch_roles<decode::team_threads>("Tributary::indexer_topk::hopper_decode", exec,
                                     static_cast<int>(problem.batch * plan.tiles * plan.splits), DecodeKernel<Row, Columns>{call});
}

// The instantiations of this level.
template <class Element, int HeadDim>
void run_columns(const Kokkos::Cuda& exec, const IndexerProblem& problem, const DecodePlan& plan, const TopkOutput& output) {
  using Row = DecodeRow<Element, HeadDim>;
  if (plan.columns == 64) return run<Row, 64>(exec, problem, plan, output);
  run<Row, 128>(exec, problem, plan, output);
}

}  // namespace

template <class Exec>
DecodePlan plan_decode(const Exec& exec, const IndexerProblem& p, std::int64_t top_k, WorkspaceLayout& layout) {
  DecodePlan         plan  = shape_decode(exec, p);
  const std::int64_t tiles = p.batch * plan.tiles, rows = plan.rows(p.batch);
  plan.keep = static_cast<std::int32_t>(std::max<std::int64_t>(1, std::min(top_k, p.keys)));
  // Of scores in random order 8 / counted_eighths times k become candidates; the more there is room for, the more crowded the bins may be.
  const std::int64_t usual = plan.keep <= 1024 ? 4096 : most_decode_candidates, share = (13 << 20) / 8 / std::max<std::int64_t>(rows, 1);
  plan.list_capacity = static_cast<std::int32_t>(std::clamp<std::int64_t>(share, plan.keep + plan.keep / 2 + 512, usual));
  // What is counted must be joined with the other teams' counts, and the candidates among it found, while the rest is multiplied: the
  // less the better.  But the fewer eighths are counted the more candidates there are, 8 k for one; half of the list is enough for them.
  plan.counted_eighths = std::clamp((16 * plan.keep + plan.list_capacity - 1) / plan.list_capacity, 2, 5);
  plan.pool_capacity   = std::max(pool_sizes(plan.keep, p.keys, decode::math_threads).capacity, plan.list_capacity);
  // A team's share of them and an eighth more; where there are many rows all lists together are as large as `share` allows.
  const std::int32_t a_team = 9 * plan.keep / plan.counted_eighths / plan.splits + 1;
  plan.places               = 32;
  while (plan.places < a_team) plan.places *= 2;
  if (plan.list_capacity + plan.splits * plan.places > share) {
    while (plan.places > 2 && plan.splits * plan.places > plan.list_capacity / 2) plan.places /= 2;
    plan.list_capacity -= plan.splits * plan.places;
  }
  plan.maps       = layout.take<DecodeMaps>(1);
  plan.scores     = layout.take<float>(p.batch * p.queries * plan.score_row);
  plan.lists      = layout.take<Entry>(rows * plan.splits * plan.places);
  plan.candidates = layout.take<Entry>(rows * plan.list_capacity);
  plan.zero_count = rows * (decode::bins + 2) + tiles * 3;
  plan.zeros      = layout.take<std::uint32_t>(plan.zero_count);
  plan.histogram  = plan.zeros;
  plan.listed     = plan.histogram + rows * decode::bins;
  plan.owner      = plan.listed + rows;
  plan.next       = reinterpret_cast<std::int32_t*>(plan.owner + rows);
  plan.counted    = plan.next + tiles;
  plan.finished   = plan.counted + tiles;
  return plan;
}

template <class Exec>
void decode_topk(const Exec& exec, const IndexerProblem& problem, const DecodePlan& plan, const TopkOutput& output) {
  if (problem.batch * plan.tiles == 0) return;
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
