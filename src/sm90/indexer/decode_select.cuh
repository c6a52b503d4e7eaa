#pragma once
#include "sm90/indexer/decode_state.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/cp_async.cuh"
#include "sm90/ptx/global.cuh"
#include "sm90/ptx/predicated.cuh"
#include "sm90/topk/output.cuh"

// Selection.  The teams of a tile of queries count the scores of the first key tiles and add their counts up while they multiply the rest.
// Scores in the best bins, as few as together hold k of those counted, are a row's candidates.  Once a team knows the bins its math warps
// list the candidates among the scores that they make, and what they made before is looked through by the counting warps and by those that
// are done.  A team has places of its own in the row's list, which it fills as it goes.  At the end one of the teams sorts the list.  A
// count that comes late only makes more candidates, so no team has to wait for another one that might not have started: what is counted at
// a time will do.  Where the list does not hold all candidates the row's stored scores are read instead.

namespace Tributary::Impl::SM90 {

/// Bins for a row from the scores of a sample, NaN where a key is not legal; a warp.
__device__ inline DecodeBins place_bins(const DecodeSample& sample, int lane) {
  // Of eight groups of eight scores the middle one of the greatest, and of the least: some 92 and 8 % of the scores are below these, and a
  // few outliers change them little.
  constexpr float largest = 3.402823466e38f;
  const float     own[2]  = {sample[lane], sample[lane + 32]};
  float           most = -largest, least = largest;
  for (const float score : own)
    if (fabsf(score) <= largest) most = fmaxf(most, score), least = fminf(least, score);
#pragma unroll
  for (int distance = 8; distance < 32; distance *= 2) {
    most  = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, distance));
    least = fminf(least, __shfl_xor_sync(0xffffffffu, least, distance));
  }
  const bool real  = most >= least;
  const int  count = __popc(__ballot_sync(0xffffffffu, real)) / 4;
  if (count == 0) return {0.0f, 0.0f};
  int most_rank = 0, least_rank = 0;
#pragma unroll 1
  for (int other = 0; other < 8; ++other) {
    const float its_most = __shfl_sync(0xffffffffu, most, other), its_least = __shfl_sync(0xffffffffu, least, other);
    if (its_most < its_least) continue;
    most_rank += its_most < most || (its_most == most && other < lane % 8) ? 1 : 0;
    least_rank += its_least < least || (its_least == least && other < lane % 8) ? 1 : 0;
  }
  const auto middle = [&](float of, int rank) {
    return __shfl_sync(0xffffffffu, of, __ffs(static_cast<int>(__ballot_sync(0xffffffffu, real && rank == count / 2))) - 1);
  };
  const float low = middle(least, least_rank), high = middle(most, most_rank);
  const float range = high > low ? high - low : fabsf(low) * 0x1p-8f;
  return {low, 128.0f / fmaxf(range, 1e-30f)};
}

/// A lane's bins of a row's counts, to be waited for.
struct CountsOfLane {
  static constexpr int each = decode::bins / 32;

  uint4 four[each / 4];

  __device__ void load(const std::uint32_t* histogram, int lane) {
#pragma unroll
    for (int i = 0; i < each / 4; ++i) four[i] = __ldcg(reinterpret_cast<const uint4*>(histogram + lane * each) + i);
  }
};

/// The least bin of a row such that it and better ones hold `wanted` scores of those counted; 0 if there are not so many.  A warp.
__device__ inline int least_bin(const CountsOfLane& counts, std::int64_t wanted, int lane) {
  constexpr int each = CountsOfLane::each;
  std::uint32_t count[each];
#pragma unroll
  for (int i = 0; i < each; i += 4) {
    const uint4 four = counts.four[i / 4];
    count[i] = four.x, count[i + 1] = four.y, count[i + 2] = four.z, count[i + 3] = four.w;
  }
  std::uint32_t own = 0;
#pragma unroll
  for (int i = 0; i < each; ++i) own += count[i];
  std::uint32_t upto = own;  // from the best bin to this lane's last one
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const std::uint32_t better = __shfl_down_sync(0xffffffffu, upto, distance);
    if (lane + distance < 32) upto += better;
  }
  std::uint32_t reached = upto - own;
  int           found   = -1;
  if (reached < wanted && wanted <= upto) {
#pragma unroll
    for (int i = each - 1; i >= 0; --i) {
      reached += count[i];
      if (found < 0 && reached >= wanted) found = lane * each + i;
    }
  }
  return max(0, __reduce_max_sync(0xffffffffu, found));
}

/// A candidate of a row, to the team's places in the row's list or, where they are taken, to those that all teams share.
__device__ inline void list_candidate(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, int row, Entry entry) {
  const DecodePlan&  plan   = call.plan;
  const std::int64_t number = tile.row_number(call, row);
  if (const int place = atomicAdd(&state.listed[row], 1) + 1; place < plan.places) {
    plan.lists[(number * plan.splits + tile.split) * plan.places + place] = entry;
    return;
  }
  const std::uint32_t place = atomicAdd(plan.listed + number, 1u);
  if (place < static_cast<std::uint32_t>(plan.list_capacity)) plan.candidates[number * plan.list_capacity + place] = entry;
}

/// Lists the candidates among the scores that were made before their warps listed them, a row of a few tiles at a time; any warp.
__device__ inline void list_earlier(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, int lane) {
  constexpr int loads = 4, at_once = 2 * loads;  // half a warp a tile, four scores a lane
  ptx::mbarrier_wait(&state.chosen, 0);
  ptx::mbarrier_wait(&state.switched, 0);
  const int until = __reduce_max_sync(0xffffffffu, lane < decode::math_warps ? state.first_listed[lane] : 0);
  const int tiles = until == 0x7fffffff ? state.tile_count : until - 1;
  const int rows = tile.rows(call), groups = call.plan.groups, rows_of_group = call.plan.tile_rows / groups;
  const int step = decode::math_groups / groups;  // of a warpgroup's tiles; a power of two
  const int own  = lane % 16 * 4;                 // of a tile's scores
  for (;;) {
    int claimed = 0;
    if (lane == 0) claimed = atomicAdd(&state.claimed, 1);
    claimed         = __shfl_sync(0xffffffffu, claimed, 0);
    const int first = claimed / rows * at_once, row = claimed % rows;
    if (first >= tiles) return;
    const float* const        from         = tile.scores(call, row);
    const RowKeys             keys         = state.rows[row];
    const DecodeBins          bins         = state.row_bins[row];
    const float               least        = state.least[row];
    const std::int32_t* const first_listed = state.first_listed + row / rows_of_group * 4 + own / 16;
    float4                    score[loads];
    std::int32_t              at[loads];  // in the hull; -1: not to be looked at
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      const int  order      = first + 2 * i + lane / 16;
      const bool is_earlier = order < tiles && order + 1 < first_listed[((order + 1) & (step - 1)) * groups * 4];
      const int  place      = is_earlier ? state.tiles[order] * decode::keys + own : 0x7fffffff;
      at[i]                 = place < tile.hull_end - tile.hull_begin ? place : -1;
      if (at[i] >= 0) score[i] = __ldcg(reinterpret_cast<const float4*>(from + at[i]));
    }
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      if (at[i] < 0) continue;
      const float4 four     = score[i];
      const auto   found_if = [&](float of, unsigned bit) { return DecodeBins::reaches(bins.position(of), least) ? bit : 0u; };
      unsigned     found    = found_if(four.x, 1) | found_if(four.y, 2) | found_if(four.z, 4) | found_if(four.w, 8);
#pragma unroll 1
      for (; found != 0; found &= found - 1) {
        const int          j   = __ffs(static_cast<int>(found)) - 1;
        const float        of  = j == 0 ? four.x : j == 1 ? four.y : j == 2 ? four.z : four.w;
        const std::int32_t key = tile.hull_begin + at[i] + j;
        if (keys.begin <= key && key < keys.end)
          list_candidate(call, tile, state, row, make_entry(sortable(of), static_cast<std::uint32_t>(key - keys.first_key)));
      }
    }
  }
}

/// Adds the team's counts to those of the others and finds what the rows' candidates must reach.  Each of the counting warps has every
/// third row.
__device__ inline void count_scores(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, unsigned char* scratch, int warp,
                                    int lane) {
  const DecodePlan& plan = call.plan;
  const int         rows = tile.rows(call);
  const auto* const own  = reinterpret_cast<const std::uint32_t*>(scratch + call.scratch.histogram);
  auto* const       all  = plan.histogram + tile.row_number(call, 0) * decode::bins;
  ptx::mbarrier_wait(&state.counted, 0);
  for (int row = warp; row < rows; row += decode::count_warps)
#pragma unroll 4
    for (int i = row * decode::bins + lane; i < (row + 1) * decode::bins; i += 32)
      if (own[i] != 0) atomicAdd(all + i, own[i]);
  __syncwarp();
  if (lane == 0) {
    // Without a fence, which waits for 6 us beside the busy memory: counts that come after the sum is read make the list longer, that is
    // all.
    atomicAdd(plan.counted + tile.number, 1);
    // Not for ever: teams that have not started may be waiting for this one's place.
#pragma unroll 1
    for (int i = 0; i < decode::count_polls && ptx::ld_acquire(plan.counted + tile.number) < plan.splits * decode::count_warps; ++i) {
    }
  }
  __syncwarp();
  CountsOfLane next;
  if (warp < rows) next.load(all + warp * decode::bins, lane);
  for (int row = warp; row < rows; row += decode::count_warps) {
    const CountsOfLane counts = next;
    if (row + decode::count_warps < rows) next.load(all + (row + decode::count_warps) * decode::bins, lane);
    const int bin = least_bin(counts, call.output.top_k, lane);
    if (lane == 0) state.least[row] = DecodeBins::least_position(bin);
  }
  if (lane == 0) {
    __threadfence_block();
    atomicAdd(&state.is_chosen, 1);
    ptx::mbarrier_arrive(&state.chosen);
  }
  __syncwarp();
}

/// The math warps' part of the selection, at the end.
struct DecodeSelection {
  using Pool = Candidates<decode::math_threads, 1024>;
  using Team = typename Pool::Team;

  const DecodeCall& call;
  const DecodeTile& tile;
  DecodeState&      state;
  unsigned char*    scratch;

  /// Finds the rows that this team is to select, and selects.  A tile's only row is its last team's.  Several rows are shared out to the
  /// teams, which wait for the last one; whoever has waited for too long leaves its rows to it.
  __device__ void select_rows() const {
    const int count = tile.rows(call), splits = call.plan.splits;
    if (Team::warp() == 0) {
      if (const int row = Team::lane(); row < count)
        call.plan.lists[(tile.row_number(call, row) * splits + tile.split) * call.plan.places] =
            static_cast<Entry>(min(state.listed[row], call.plan.places - 1));
      __syncwarp();
      if (Team::lane() == 0) state.ticket = ptx::atom_add_acq_rel(call.plan.finished + tile.number, 1);
    }
    Team::sync();
    const bool last = state.ticket + 1 == splits;
    // First the team's own rows, then, by the last one, those that were left.
#pragma unroll 1
    for (int step = 0; step < (last ? 2 * count : count); ++step) {
      const int  row = step < count ? step : step - count;
      const bool own = count == 1 ? last : row % splits == tile.split;
      if (own != (step < count)) continue;
      if (count > 1) {
        Team::sync();  // the last row is done, and its answer has been read
        if (Team::rank() == 0) state.ticket = (own ? wait_for_all(row) : was_left(row)) ? 1 : 0;
        Team::sync();
        if (state.ticket == 0) continue;
      }
      select(row);
    }
  }

 private:
  enum Owner : std::uint32_t { waiting = 0, gone = 1, bound = 2 };

  /// Whether the team still selects its row once all teams have ended; asked by one thread.
  __device__ bool wait_for_all(int row) const {
    const std::int32_t* const finished = call.plan.finished + tile.number;
    const auto                done     = [&] { return ptx::ld_acquire(finished) == call.plan.splits; };
#pragma unroll 1
    for (int i = 0; i < decode::end_polls; ++i)
      if (done()) return true;
    if (atomicCAS(call.plan.owner + tile.row_number(call, row), std::uint32_t{waiting}, std::uint32_t{gone}) == waiting) return false;
    while (!done()) {
    }
    return true;
  }
  /// Whether the last team has to select another one's row; otherwise that one must.
  __device__ bool was_left(int row) const {
    return atomicCAS(call.plan.owner + tile.row_number(call, row), std::uint32_t{waiting}, std::uint32_t{bound}) == gone;
  }

  __device__ void select(int row) const {
    const DecodePlan&  plan   = call.plan;
    const std::int64_t number = tile.row_number(call, row);
    const Entry* const list   = plan.lists + number * plan.splits * plan.places;
    const bool         ranks  = call.output.order == TopkOrder::by_score;
    if (ranks) ask_for(list);
    const auto more   = static_cast<std::int64_t>(__ldcg(plan.listed + number));
    const bool is_all = more <= plan.list_capacity;
    ptx::cp_async_wait_all();
    if (ranks && is_all && rank_list(row, static_cast<int>(more))) return;
    Team::sync();
    Pool                pool(scratch, plan.keep, plan.keep + plan.keep / 4, plan.pool_capacity);
    const RowKeys       keys   = state.rows[row];
    const float* const  scores = tile.scores(call, row) + (keys.begin - tile.hull_begin);
    const std::uint32_t index  = static_cast<std::uint32_t>(keys.begin - keys.first_key);
    constexpr int       each   = 8;
    const int           places = plan.splits * plan.places;
    const int           count  = is_all ? places + static_cast<int>(more) : keys.end - keys.begin;
    for (int first = 0; first < count; first += each * Team::threads) {
      Entry    own[each];
      unsigned mask = 0;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int at = first + i * Team::threads + Team::rank();
        own[i]       = no_entry;
        if (at >= count) continue;
        if (!is_all)
          own[i] = make_entry(sortable(__ldcg(scores + at)), index + static_cast<std::uint32_t>(at));
        else if (at >= places)
          own[i] = __ldcg(plan.candidates + number * plan.list_capacity + (at - places));
        else if (const int place = at & (plan.places - 1); place > 0 && place <= static_cast<int>(__ldcg(list + (at - place))))
          own[i] = __ldcg(list + at);
        else
          continue;
        mask |= 1u << i;
      }
      const auto entry = [&](int i) { return own[i]; };
      do mask = pool.template within<each>(mask, ~Entry{0}, entry);
      while (!pool.template offer<each>(mask, entry));
    }
    write_row(pool, plan.keep, call.output, tile.batch, tile.first_row + row);
  }

  // Where a list is ranked.
  __device__ auto& exchange() const { return *reinterpret_cast<typename Team::Exchange*>(scratch); }
  // Of the bins, the worst one first: how many candidates each has, then how many are in better ones, so that a bin's end is at the bin
  // before it; [-1] of all.
  __device__ int*   bin_counts() const { return reinterpret_cast<int*>(&exchange() + 1) + 4; }
  __device__ Entry* ranked_list() const { return reinterpret_cast<Entry*>(bin_counts() + FineBins::count); }

  /// Copies all teams' places to where they are ranked; asked for, not waited for.
  __device__ void ask_for(const Entry* list) const {
    reinterpret_cast<int4*>(bin_counts())[Team::rank()] = {0, 0, 0, 0};
#pragma unroll 4
    for (int i = 2 * Team::rank(); i < call.plan.splits * call.plan.places; i += 2 * Team::threads)
      ptx::cp_async(ptx::shared_address(ranked_list() + i), list + i, true);
  }

  /// Writes the best of a list that was asked for and has come, ranked within bins; false if a bin holds too many for that.
  ///
  /// \param more  candidates that their teams had no place for
  __device__ bool rank_list(int row, int more) const {
    constexpr int crowd = 256, threads = Team::threads, bin_bits = 11;
    static_assert(FineBins::count == 4 * threads && FineBins::count == 1 << bin_bits);
    const DecodePlan& plan   = call.plan;
    const int         places = plan.splits * plan.places, listed = places + more;
    const int         room   = plan.keep + crowd;
    int* const        bins   = bin_counts();
    Entry* const      list   = ranked_list();
    Entry* const      sorted = list + listed;
    // Of what is in the list: its bin, and how many came there before it; all ones where there is no candidate.
    std::uint32_t* const where  = reinterpret_cast<std::uint32_t*>(sorted + room);
    const int            thread = Team::rank(), best_first = threads - 1 - thread;  // four bins each, the best ones first
    const FineBins       bin_of{state.row_bins[row]};
    for (int i = thread; i < more; i += threads)
      list[places + i] = __ldcg(plan.candidates + tile.row_number(call, row) * plan.list_capacity + i);
    Team::sync();
    constexpr int together = 3;  // places of a thread side by side: their chains of dependent instructions overlap
#pragma unroll 1
    for (int first = thread; first < listed; first += together * threads) {
      int  bin[together], before[together];
      bool real[together];
#pragma unroll
      for (int u = 0; u < together; ++u) {
        const bool inside = first + u * threads < listed;
        const int  at = inside ? first + u * threads : first, place = at & (plan.places - 1);
        const int  taken = static_cast<int>(list[at - place]);
        real[u]          = inside & ((at >= places) | ((place > 0) & (place <= taken)));
        bin[u]           = bin_of(score_of(list[at]));
      }
#pragma unroll
      for (int u = 0; u < together; ++u) before[u] = ptx::atom_shared_add_if(real[u], bins + bin[u], 1);
#pragma unroll
      for (int u = 0; u < together; ++u)
        if (first + u * threads < listed)
          where[first + u * threads] = real[u] ? static_cast<std::uint32_t>(before[u] << bin_bits | bin[u]) : 0xffffffffu;
    }
    Team::sync();
    const int4 own                            = reinterpret_cast<const int4*>(bins)[best_first];
    const int  better                         = Team::exclusive_sum(exchange(), own.x + own.y + own.z + own.w);
    const int4 begin                          = {better + own.w + own.z + own.y, better + own.w + own.z, better + own.w, better};
    const auto crowded                        = [&](int before, int inside) { return before < plan.keep && inside > crowd; };
    reinterpret_cast<int4*>(bins)[best_first] = begin;
    if (best_first == 0) bins[-1] = begin.x + own.x;
    if (Team::any(crowded(begin.x, own.x) || crowded(begin.y, own.y) || crowded(begin.z, own.z) || crowded(begin.w, own.w))) return false;
#pragma unroll 5
    for (int i = thread; i < listed; i += threads) {
      const std::uint32_t place = bins[where[i] % FineBins::count] + (where[i] >> bin_bits);
      if (place < static_cast<std::uint32_t>(room)) sorted[place] = list[i];
    }
    Team::sync();
    const TopkOutput& output = call.output;
    const TopkRow     out(output, tile.batch, tile.first_row + row);
    const int         all = bins[-1];
    for (int i = thread; i < min(all, room); i += threads) {
      const Entry entry = sorted[i];
      const int   bin = bin_of(score_of(entry)), first = bins[bin], end = bins[bin - 1];
      if (first >= output.top_k) break;
      int rank = first;
      for (int other = first; other < end; ++other) rank += sorted[other] > entry ? 1 : 0;
      if (rank < output.top_k) out.put(rank, entry);
    }
    for (std::int64_t i = all + thread; i < output.top_k; i += threads) out.pad(i);
    return true;
  }
};

}  // namespace Tributary::Impl::SM90
