#pragma once
#include "sm90/indexer/decode_state.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/global.cuh"
#include "sm90/topk/output.cuh"

// Selection.  The teams of a tile of queries count the scores of the first key tiles and add their counts up while they multiply the rest.
// Scores in the best bins, as few as together hold k of those counted, are a row's candidates.  Once a team knows the bins its math warps
// list the candidates among the scores that they make, and what they made before is looked through by the counting warps and by those that
// are done.  At the end one of the teams sorts the row's list.  A count that comes late only makes more candidates, so no team has to wait
// for another one that might not have started: what is counted at a time will do.  Where the list does not hold all candidates the row's
// stored scores are read instead.

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
#pragma unroll
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

/// The least bin of a row such that it and better ones hold `wanted` scores of those counted; 0 if there are not so many.  A warp.
__device__ inline int least_bin(const std::uint32_t* histogram, std::int64_t wanted, int lane) {
  constexpr int each = decode::bins / 32;
  std::uint32_t count[each];
#pragma unroll
  for (int i = 0; i < each; i += 4) {
    const uint4 four = __ldcg(reinterpret_cast<const uint4*>(histogram + lane * each + i));
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

/// The least image of a score (`sortable`) in a bin or a better one; 0, which even NaN reaches, for bin 0.  A warp.
__device__ inline std::uint32_t least_image(const DecodeBins& bins, int bin, int lane) {
  if (bin == 0) return 0;
  constexpr std::uint64_t infinity = 0xff800000u;
  std::uint64_t           below    = 0;                       // in a lower bin
  for (int shift = 27;; shift = shift > 5 ? shift - 5 : 0) {  // it is at most 32 << shift above
    const std::uint64_t image   = below + (static_cast<std::uint64_t>(lane + 1) << shift);
    const bool          reaches = image >= infinity || bins(score_of(static_cast<Entry>(image) << 32)) >= bin;
    below += static_cast<std::uint64_t>(__ffs(static_cast<int>(__ballot_sync(0xffffffffu, reaches))) - 1) << shift;
    if (shift == 0) return static_cast<std::uint32_t>(below) + 1;
  }
}

/// A candidate of a row, to the team's list or, where it is full, to the row's.
__device__ inline void list_candidate(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, unsigned char* scratch, int row,
                                      Entry entry) {
  auto* const list = reinterpret_cast<Entry*>(scratch + call.scratch.list);
  const int   room = call.scratch.list_room;
  if (const int place = atomicAdd(&state.listed[row], 1); place < room) {
    list[row * room + place] = entry;
    return;
  }
  const std::int64_t  number  = tile.row_number(call, row);
  const std::uint32_t in_rows = atomicAdd(call.plan.listed + number, 1u);
  if (in_rows < static_cast<std::uint32_t>(call.plan.list_capacity))
    call.plan.candidates[number * call.plan.list_capacity + in_rows] = entry;
}

/// Lists the candidates among the scores that were made before their warps listed them, a few tiles at a time; any warp.
__device__ inline void list_earlier(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, unsigned char* scratch, int lane) {
  constexpr int loads = 4, at_once = 2 * loads;  // half a warp a tile, four scores a lane
  ptx::mbarrier_wait(&state.chosen, 0);
  ptx::mbarrier_wait(&state.switched, 0);
  const int until = __reduce_max_sync(0xffffffffu, lane < decode::math_warps ? state.first_listed[lane] : 0);
  const int tiles = until == 0x7fffffff ? state.tile_count : until - 1;
  const int rows = tile.rows(call), groups = call.plan.groups, rows_of_group = call.plan.tile_rows / groups;
  const int own = lane % 16 * 4;  // of a tile's scores
  for (;;) {
    int first = 0;
    if (lane == 0) first = atomicAdd(&state.claimed, at_once);
    first = __shfl_sync(0xffffffffu, first, 0);
    if (first >= tiles) return;
    for (int row = 0; row < rows; ++row) {
      const float* const  from  = tile.scores(call, row);
      const RowKeys       keys  = state.rows[row];
      const std::uint32_t least = state.least[row];
      float4              score[loads];
      std::int32_t        at[loads];  // in the hull; -1: not to be looked at
#pragma unroll
      for (int i = 0; i < loads; ++i) {
        const int order       = first + 2 * i + lane / 16,
                  warpgroup   = (order + 1) % (decode::math_groups / groups) * groups + row / rows_of_group;
        const bool is_earlier = order < tiles && order + 1 < state.first_listed[warpgroup * 4 + own / 16];
        const int  place      = is_earlier ? state.tiles[order] * decode::keys + own : 0x7fffffff;
        at[i]                 = place < tile.hull_end - tile.hull_begin ? place : -1;
        if (at[i] >= 0) score[i] = __ldcg(reinterpret_cast<const float4*>(from + at[i]));
      }
#pragma unroll
      for (int i = 0; i < loads; ++i) {
        if (at[i] < 0) continue;
        const std::uint32_t image[4] = {sortable(score[i].x), sortable(score[i].y), sortable(score[i].z), sortable(score[i].w)};
        if (max(max(image[0], image[1]), max(image[2], image[3])) < least) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const std::int32_t key = tile.hull_begin + at[i] + j;
          if (image[j] >= least && keys.begin <= key && key < keys.end)
            list_candidate(call, tile, state, scratch, row, make_entry(image[j], static_cast<std::uint32_t>(key - keys.first_key)));
        }
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
    __threadfence();
    atomicAdd(plan.counted + tile.number, 1);
    // Not for ever: teams that have not started may be waiting for this one's place.
    for (int i = 0; i < decode::count_polls && ptx::ld_acquire(plan.counted + tile.number) < plan.splits * decode::count_warps; ++i) {
    }
  }
  __syncwarp();
  for (int row = warp; row < rows; row += decode::count_warps) {
    const int           bin   = least_bin(all + row * decode::bins, call.output.top_k, lane);
    const std::uint32_t image = least_image(state.row_bins[row], bin, lane);
    if (lane == 0) state.least[row] = image;
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

  /// Hands the team's candidates over to the row's list, in one piece a row.  Starts after a barrier, after which all is there.
  __device__ void hand_over() const {
    const int thread = Team::rank(), count = tile.rows(call), room = call.scratch.list_room, capacity = call.plan.list_capacity;
    if (thread < count)
      state.place[thread] = static_cast<int>(
          atomicAdd(call.plan.listed + tile.row_number(call, thread), static_cast<std::uint32_t>(min(state.listed[thread], room))));
    Team::sync();
    if (const int row = Team::warp(); row < count) {
      const int          listed = min(state.listed[row], room), place = state.place[row];
      const Entry* const own = reinterpret_cast<const Entry*>(scratch + call.scratch.list) + row * room;
      Entry* const       to  = call.plan.candidates + tile.row_number(call, row) * capacity;
      for (int i = Team::lane(); i < listed && place + i < capacity; i += 32) to[place + i] = own[i];
    }
    Team::sync();
  }

  /// Finds the rows that this team is to select, and selects.  A tile's only row is its last team's.  Several rows are shared out to the
  /// teams, which wait for the last one; whoever has waited for too long leaves its rows to it.
  __device__ void select_rows() const {
    const int count = tile.rows(call), splits = call.plan.splits;
    if (Team::rank() == 0) {
      __threadfence();
      state.ticket = atomicAdd(call.plan.finished + tile.number, 1);
    }
    Team::sync();
    const bool last = state.ticket + 1 == splits;
    // First the team's own rows, then, by the last one, those that were left.
    for (int pass = 0; pass < (last ? 2 : 1); ++pass)
      for (int row = 0; row < count; ++row) {
        const bool own = count == 1 ? last : row % splits == tile.split;
        if (own != (pass == 0)) continue;
        Team::sync();  // the last row is done, and its answer has been read
        if (Team::rank() == 0) {
          state.ticket = (count == 1 || (own ? wait_for_all(row) : was_left(row))) ? 1 : 0;
          __threadfence();
        }
        Team::sync();
        if (state.ticket != 0) select(row);
      }
  }

 private:
  enum Owner : std::uint32_t { waiting = 0, gone = 1, bound = 2 };

  /// Whether the team still selects its row once all teams have ended; asked by one thread.
  __device__ bool wait_for_all(int row) const {
    const std::int32_t* const finished = call.plan.finished + tile.number;
    const auto                done     = [&] { return ptx::ld_acquire(finished) == call.plan.splits; };
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
    const std::int64_t listed = __ldcg(plan.listed + number);
    const Entry* const list   = plan.candidates + number * plan.list_capacity;
    const bool         is_all = listed <= plan.list_capacity;
    if (is_all && call.output.order == TopkOrder::by_score && rank_list(row, list, static_cast<int>(listed))) return;
    Pool                pool(scratch, plan.keep, plan.keep + plan.keep / 4, plan.pool_capacity);
    const RowKeys       keys   = state.rows[row];
    const float* const  scores = tile.scores(call, row) + (keys.begin - tile.hull_begin);
    const std::uint32_t index  = static_cast<std::uint32_t>(keys.begin - keys.first_key);
    constexpr int       each   = 8;
    const int           count  = is_all ? static_cast<int>(listed) : keys.end - keys.begin;
    for (int first = 0; first < count; first += each * Team::threads) {
      Entry    own[each];
      unsigned mask = 0;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int at = first + i * Team::threads + Team::rank();
        own[i]       = no_entry;
        if (at >= count) continue;
        own[i] = is_all ? __ldcg(list + at) : make_entry(sortable(__ldcg(scores + at)), index + static_cast<std::uint32_t>(at));
        mask |= 1u << i;
      }
      const auto entry = [&](int i) { return own[i]; };
      do mask = pool.template within<each>(mask, ~Entry{0}, entry);
      while (!pool.template offer<each>(mask, entry));
    }
    write_row(pool, plan.keep, call.output, tile.batch, tile.first_row + row);
  }

  /// Writes the best of a list, ranked within bins; false if a bin holds too many for that.
  __device__ bool rank_list(int row, const Entry* list, int listed) const {
    constexpr int crowd = 256, threads = Team::threads;
    static_assert(FineBins::count == 4 * threads);
    auto&          exchange = *reinterpret_cast<typename Team::Exchange*>(scratch);
    int* const     counts   = reinterpret_cast<int*>(&exchange + 1);
    int* const     offsets  = counts + FineBins::count;  // entries in better bins
    Entry* const   entries  = reinterpret_cast<Entry*>(offsets + FineBins::count);
    Entry* const   sorted   = entries + most_decode_candidates;
    int* const     places   = reinterpret_cast<int*>(sorted + most_decode_candidates);  // in the bin
    const int      thread = Team::rank(), best_first = threads - 1 - thread;            // four bins each, the best ones first
    const FineBins bin_of{state.row_bins[row]};
    reinterpret_cast<int4*>(counts)[thread] = {0, 0, 0, 0};
    Team::sync();
#pragma unroll 4
    for (int i = thread; i < listed; i += threads) {
      const Entry entry = __ldcg(list + i);
      entries[i]        = entry;
      places[i]         = atomicAdd(counts + bin_of(score_of(entry)), 1);
    }
    Team::sync();
    const int4 count   = reinterpret_cast<const int4*>(counts)[best_first];
    const int  better  = Team::exclusive_sum(exchange, count.x + count.y + count.z + count.w);
    const int4 offset  = {better + count.w + count.z + count.y, better + count.w + count.z, better + count.w, better};
    const auto crowded = [&](int before, int inside) { return before < call.plan.keep && inside > crowd; };
    reinterpret_cast<int4*>(offsets)[best_first] = offset;
    if (Team::any(crowded(offset.x, count.x) || crowded(offset.y, count.y) || crowded(offset.z, count.z) || crowded(offset.w, count.w)))
      return false;
#pragma unroll 2
    for (int i = thread; i < listed; i += threads) {
      const Entry entry                                    = entries[i];
      sorted[offsets[bin_of(score_of(entry))] + places[i]] = entry;
    }
    Team::sync();
    const TopkOutput& output = call.output;
    const TopkRow     out(output, tile.batch, tile.first_row + row);
    for (int i = thread; i < listed; i += threads) {
      const Entry entry = sorted[i];
      const int   bin = bin_of(score_of(entry)), begin = offsets[bin], end = begin + counts[bin];
      if (begin >= output.top_k) break;
      int rank = begin;
      for (int other = begin; other < end; ++other) rank += sorted[other] > entry ? 1 : 0;
      if (rank < output.top_k) out.put(rank, entry);
    }
    for (std::int64_t i = listed + thread; i < output.top_k; i += threads) out.pad(i);
    return true;
  }
};

}  // namespace Tributary::Impl::SM90
