#pragma once
#include "sm90/indexer/decode_state.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/global.cuh"
#include "sm90/topk/output.cuh"

// Selection.  The teams of a tile of queries count the scores of the first part of their keys and add their counts up while they multiply
// the rest.  Scores in the best bins, as few as together hold k of those counted, are a row's candidates: each team lists its own, and one
// of the teams sorts the row's list.  A count that comes late only makes more candidates, so no team has to wait for another one that might
// not have started: what is counted at a time will do.  Where the list does not hold all candidates the row's stored scores are read
// instead.

namespace Tributary::Impl::SM90 {

/// Bins for a row from the scores of a sample, NaN where a key is not legal; a warp.
__device__ inline DecodeBins place_bins(const float (&sample)[decode::keys], int lane) {
  const float    own[2]  = {sample[lane], sample[lane + 32]};
  const auto     finite  = [](float score) { return fabsf(score) <= 3.402823466e38f; };
  const auto     image   = [&](float score) { return finite(score) ? sortable(score) : 0u; };
  const unsigned of[2]   = {image(own[0]), image(own[1])};
  int            rank[2] = {0, 0};
  const int      count   = __popc(__ballot_sync(0xffffffffu, of[0] != 0)) + __popc(__ballot_sync(0xffffffffu, of[1] != 0));
  if (count == 0) return {0.0f, 0.0f};
#pragma unroll 8
  for (int other = 0; other < 32; ++other) {
    const unsigned first = __shfl_sync(0xffffffffu, of[0], other), second = __shfl_sync(0xffffffffu, of[1], other);
    // equal ones in the order of their places
    rank[0] += (first > of[0] || (first == of[0] && other < lane) ? 1 : 0) + (second > of[0] ? 1 : 0);
    rank[1] += (first >= of[1] ? 1 : 0) + (second > of[1] || (second == of[1] && other < lane) ? 1 : 0);
  }
  const auto ranked = [&](int wanted) {
    const unsigned first = __ballot_sync(0xffffffffu, rank[0] == wanted), second = __ballot_sync(0xffffffffu, rank[1] == wanted);
    return first != 0 ? __shfl_sync(0xffffffffu, own[0], __ffs(static_cast<int>(first)) - 1)
                      : __shfl_sync(0xffffffffu, own[1], __ffs(static_cast<int>(second)) - 1);
  };
  const float low = ranked(count / 2), best = ranked(0), good = ranked(min(3, (count - 1) / 4));
  const float range = good > low ? good - low : best > low ? best - low : fabsf(low) * 0x1p-8f;
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

/// Adds the team's counts to those of the others and finds the rows' least bins; a warp.
__device__ inline void count_scores(const DecodeCall& call, const KeyPart& part, DecodeState& state, unsigned char* scratch, int lane) {
  const DecodePlan& plan = call.plan;
  const int         rows = min(plan.tile_rows, static_cast<int>(call.problem.queries) - part.first_row);
  const auto* const own  = reinterpret_cast<const std::uint32_t*>(scratch + call.scratch.histogram);
  auto* const       all  = plan.histogram + static_cast<std::int64_t>(part.tile) * plan.tile_rows * decode::bins;
  ptx::mbarrier_wait(&state.counted, 0);
#pragma unroll 4
  for (int i = lane; i < rows * decode::bins; i += 32)
    if (own[i] != 0) atomicAdd(all + i, own[i]);
  __threadfence();
  __syncwarp();
  if (lane == 0) {
    atomicAdd(plan.counted + part.tile, 1);
    // Not for ever: teams that have not started may be waiting for this one's place.
    for (int i = 0; i < 100 && ptx::ld_acquire(plan.counted + part.tile) < plan.splits; ++i) {
    }
  }
  __syncwarp();
  for (int row = 0; row < rows; ++row) {
    const int bin = least_bin(all + row * decode::bins, call.output.top_k, lane);
    if (lane == 0) state.least_bin[row] = bin;
  }
  __syncwarp();
  if (lane == 0) ptx::mbarrier_arrive(&state.chosen);
}

/// The math warps' part of the selection.
struct DecodeSelection {
  using Pool = Candidates<decode::math_threads, 1024>;
  using Team = typename Pool::Team;

  const DecodeCall& call;
  const KeyPart&    part;
  DecodeState&      state;
  unsigned char*    scratch;

  __device__ int rows() const { return min(call.plan.tile_rows, static_cast<int>(call.problem.queries) - part.first_row); }
  __device__ std::int64_t row_number(int row) const { return static_cast<std::int64_t>(part.tile) * call.plan.tile_rows + row; }

  /// Lists the part's candidates: first in shared memory, where keys and queries were, then, in one piece a row, for the team that is to
  /// select.  Starts after a barrier; ends with one.
  __device__ void list_candidates() const {
    const int          thread = Team::rank(), count = rows();
    const int          room   = call.scratch.scores / static_cast<int>(sizeof(Entry)) / count;
    auto*              own    = reinterpret_cast<Entry*>(scratch);
    const int          length = part.end - part.begin, fours = (length + 3) / 4;
    const float* const near = reinterpret_cast<const float*>(scratch + call.scratch.scores);
    for (int row = 0; row < count; ++row) {
      const RowKeys    keys  = state.rows[row];
      const DecodeBins bin   = state.row_bins[row];
      const int        least = state.least_bin[row];
      const float*     far   = call.plan.scores + row_number(row) * call.plan.score_row + (part.begin - part.hull_begin);
#pragma unroll 4
      for (int i = thread; i < fours; i += decode::math_threads) {
        const float4 four     = call.scratch.score_row != 0 ? reinterpret_cast<const float4*>(near + row * call.scratch.score_row)[i]
                                                            : __ldcg(reinterpret_cast<const float4*>(far) + i);
        const float  score[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const std::int32_t key = part.begin + i * 4 + j;
          if (key < part.end && keys.begin <= key && key < keys.end && bin(score[j]) >= least) {
            const int place = atomicAdd(&state.listed[row], 1);
            if (place < room) own[row * room + place] = make_entry(sortable(score[j]), static_cast<std::uint32_t>(key - keys.first_key));
          }
        }
      }
    }
    Team::sync();
    if (thread < count) {
      const int listed = state.listed[thread];
      // Those beyond the room are lost: more than any list holds.
      state.place[thread] = static_cast<int>(atomicAdd(call.plan.listed + row_number(thread),
                                                       static_cast<std::uint32_t>(listed <= room ? listed : call.plan.list_capacity + 1)));
    }
    Team::sync();
    for (int row = 0; row < count; ++row) {
      const int    listed = min(state.listed[row], room), place = state.place[row];
      Entry* const to = call.plan.candidates + row_number(row) * call.plan.list_capacity;
      for (int i = thread; i < listed && place + i < call.plan.list_capacity; i += decode::math_threads)
        to[place + i] = own[row * room + i];
    }
    __threadfence();
    Team::sync();
  }

  /// Finds the rows that this team is to select, and selects.  A tile's only row is its last team's.  Several rows are shared out to the
  /// teams, which wait for the last one; whoever has waited for too long leaves its rows to it.
  __device__ void select_rows() const {
    const int           thread = Team::rank(), count = rows(), splits = call.plan.splits;
    std::int32_t* const finished = call.plan.finished + part.tile;
    if (thread == 0) state.ticket = atomicAdd(finished, 1);
    Team::sync();
    const bool last = state.ticket + 1 == splits;
    __threadfence();
    if (count == 1) {
      if (last) select(0);
      return;
    }
    for (int row = part.split; row < count; row += splits) select_own(row);
    if (last)
      for (int row = 0; row < count; ++row)
        if (row % splits != part.split) select_left(row);
  }

 private:
  static constexpr auto waiting = static_cast<std::uint32_t>(Owner::waiting), gone = static_cast<std::uint32_t>(Owner::gone),
                        bound = static_cast<std::uint32_t>(Owner::bound);

  /// One of this team's rows, once all teams have listed their candidates.
  __device__ void select_own(int row) const {
    const std::int32_t* const finished = call.plan.finished + part.tile;
    const auto                done     = [&] { return ptx::ld_acquire(finished) == call.plan.splits; };
    select_if(row, [&] {
      for (int i = 0; i < 1000; ++i)
        if (done()) return true;
      if (atomicCAS(call.plan.owner + row_number(row), waiting, gone) == waiting) return false;
      while (!done()) {
      }
      return true;
    });
  }
  /// Another team's row, by the last one.
  __device__ void select_left(int row) const {
    select_if(row, [&] { return atomicCAS(call.plan.owner + row_number(row), waiting, bound) == gone; });
  }

  /// \param condition  asked by one thread
  template <class Condition>
  __device__ void select_if(int row, const Condition& condition) const {
    Team::sync();  // the last row is done, and its answer has been read
    if (Team::rank() == 0) state.ticket = condition() ? 1 : 0;
    Team::sync();
    __threadfence();
    if (state.ticket != 0) select(row);
  }

  __device__ void select(int row) const {
    const DecodePlan&  plan   = call.plan;
    const std::int64_t number = row_number(row);
    const auto         listed = static_cast<std::int32_t>(__ldcg(plan.listed + number));
    Pool               pool(scratch, plan.keep, plan.keep + plan.keep / 4, plan.pool_capacity);
    if (listed <= plan.list_capacity) {
      const Entry* const list = plan.candidates + number * plan.list_capacity;
      offer<4>(pool, listed, [&](int i) { return __ldcg(list + i); });
    } else {
      const RowKeys      keys   = state.rows[row];
      const float* const scores = plan.scores + number * plan.score_row + (keys.begin - part.hull_begin);
      const auto         first  = static_cast<std::uint32_t>(keys.begin - keys.first_key);
      offer<16>(pool, keys.end - keys.begin, [&](int i) { return make_entry(sortable(__ldcg(scores + i)), first + i); });
    }
    write_row(pool, plan.keep, call.output, part.batch, part.first_row + row);
  }

  template <int Each, class EntryAt>
  __device__ void offer(Pool& pool, int count, const EntryAt& entry_at) const {
    for (int first = 0; first < count; first += Each * Team::threads) {
      Entry    own[Each];
      unsigned mask = 0;
#pragma unroll
      for (int i = 0; i < Each; ++i) {
        const int at = first + i * Team::threads + Team::rank();
        own[i]       = at < count ? entry_at(at) : no_entry;
        mask |= (at < count ? 1u : 0u) << i;
      }
      const auto entry = [&](int i) { return own[i]; };
      do mask = pool.template within<Each>(mask, ~Entry{0}, entry);
      while (!pool.template offer<Each>(mask, entry));
    }
  }
};

}  // namespace Tributary::Impl::SM90
