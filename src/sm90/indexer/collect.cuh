#pragma once
#include "sm90/indexer/parameters.cuh"
#include "sm90/indexer/score.cuh"
#include "sm90/indexer/select.cuh"
#include "sm90/indexer/tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/predicated.cuh"

// What becomes of scores: a math warp appends those that beat their row's threshold to the row's buffer in device memory (mostly in
// the second-level cache), or, for indexer_score, stores them all.  It does so while the next tile is multiplied.

namespace Tributary::Impl::SM90 {

/// The greatest float below a sortable image's score, for comparisons `score <= below`; NaN, which fails them all, below -infinity.
__device__ inline float just_below(std::uint32_t image) {
  if (image == 0) return __int_as_float(0x7fffffff);
  std::uint32_t lower = image - 1;
  if (lower == 0x7fffffffu) --lower;  // -0, which equals +0
  return score_of(static_cast<Entry>(lower) << 32);
}

/// One math warp's part.  The four warps of a group share the rows and their buffers, each has other keys; a row has an owner among them,
/// who opens and cuts its buffer.
template <class Tile>
class Collector {
 public:
  using Scores = typename Scoring<Tile>::Scores;

  __device__ Collector(const IndexerCall& call, SharedState<Tile>& shared, unsigned char* scratch, int team, int warp, int lane)
      : call_(call), shared_(shared), scratch_(scratch), team_(team), group_(warp / 4), warp_(warp % 4), lane_(lane) {}

  /// \param slot  of the item that the tiles to come belong to
  __device__ void begin(int slot) { slot_ = slot; }

  /// After the item's last tile: everything is in the buffers, for all warps of the group.
  __device__ void end() const {
    __threadfence();  // buffers are read past the first-level cache
    meet();
  }

  /// Between two tiles, when all warps of the group are done with the one before the last: rows whose buffers are full go back to their k
  /// best.
  __device__ void cut_full_rows() {
    // One of two words, so that nobody writes it now.
    const std::uint32_t full = const_cast<const volatile std::uint32_t&>(shared_.full[group_][parity_]);
    if (full == 0) return;
    __threadfence();  // buffers are read past the first-level cache
    meet();
#pragma unroll 1
    for (int r = warp_; r < Tile::group_queries; r += 4)
      if ((full >> r & 1) != 0 && state_of(group_ * Tile::group_queries + r).count > limit()) cut(group_ * Tile::group_queries + r);
    __threadfence_block();
    meet();
    if (warp_ == 0 && lane_ == 0) shared_.full[group_][parity_] = 0;
    __syncwarp();
  }

  /// Tile number j of the item's `tiles`; first_key is its first key's row.
  __device__ void take(int j, int tiles, const Scores& scores, int first_key) {
    const int key = first_key + warp_ * 16 + lane_ / 4;  // of the lane's first key; the other one is 8 further
    parity_ ^= 1;
    if (call_.scores != nullptr) return store(scores, key);
    if (j == 0 && tiles > 1) return put_aside(scores);
    // After the last two tiles nobody cuts.  They meet no barrier on their way, so a warp that is late may still look at either word.
    const bool cut_follows = j + 2 < tiles;
    if (j <= 1) {
      Scores before;  // the first tile's: the second one lies far from it
      if (j == 1) take_back(before);
      const int key_before = item().key + warp_ * 16 + lane_ / 4;
      open_rows(scores, key, before, key_before, j == 1);
      if (j == 1) append(before, key_before, cut_follows);
    }
    append(scores, key, cut_follows);
  }

 private:
  static constexpr int      own_rows       = Scoring<Tile>::own_rows;
  static constexpr unsigned lanes_of_a_row = 0x11111111u;  // shifted by the row's number in its four

  __device__ const WorkItem<Tile::queries>& item() const { return shared_.items[slot_]; }
  /// Of the lane's r-th row, in the team's tile.
  __device__ int       own_row(int r) const { return group_ * Tile::group_queries + r * 4 + lane_ % 4; }
  __device__ RowState& state_of(int row) const { return shared_.rows[row]; }
  __device__ std::uint32_t* bins_of(int row) const {
    return reinterpret_cast<std::uint32_t*>(scratch_ + Tile::bins_offset) + row * Tile::bins;
  }
  __device__ Entry* buffer_of(int row) const { return buffer<Tile>(call_, team_, row); }
  /// Beyond so many entries a row is cut two tiles later.
  __device__ int limit() const { return call_.plan.capacity - 2 * Tile::keys; }

  /// The four warps of the group meet.
  __device__ void meet() const {
    __syncwarp();  // the barrier wants whole warps
    ptx::bar_sync(3 + group_, 128);
  }

  /// In one piece, and by an atomic: PTX promises nothing of a compare-and-swap beside ordinary stores to shared memory.
  __device__ void set_rejected(int row, const RejectedScore& to) const {
    atomicExch(reinterpret_cast<unsigned long long*>(&shared_.rejected[row]), Kokkos::bit_cast<std::uint64_t>(to));
  }

  /// The first tile's scores wait for the second's where the bins will be.
  __device__ float& aside(int r, int i) const { return reinterpret_cast<float*>(bins_of(own_row(r)))[warp_ * 16 + lane_ / 4 + 8 * i]; }
  __device__ void   put_aside(const Scores& scores) const {
#pragma unroll
    for (int r = 0; r < own_rows; ++r)
#pragma unroll
      for (int i = 0; i < 2; ++i) aside(r, i) = scores[r][i];
  }
  __device__ void take_back(Scores& scores) const {
#pragma unroll
    for (int r = 0; r < own_rows; ++r)
#pragma unroll
      for (int i = 0; i < 2; ++i) scores[r][i] = aside(r, i);
  }

  /// The rows' buffers and bins start, with bins where the scores of the first one or two tiles lie.
  __device__ void open_rows(const Scores& scores, int key, const Scores& before, int key_before, bool two) {
    for (int r = 0; r < own_rows; ++r) {
      float         least = __int_as_float(0x7f800000), greatest = -least;
      const RowKeys keys = item().rows[own_row(r)];
      const auto    see  = [&](const float(&of)[2], int first) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool seen = (keys.begin <= first + 8 * i) & (first + 8 * i < keys.end) & (fabsf(of[i]) <= 3.0e38f);
          least           = seen ? fminf(least, of[i]) : least;
          greatest        = seen ? fmaxf(greatest, of[i]) : greatest;
        }
      };
      see(scores[r], key);
      if (two) see(before[r], key_before);
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        least    = fminf(least, __shfl_xor_sync(0xffffffffu, least, distance));
        greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, distance));
      }
      if (lane_ < 4) shared_.extents[own_row(r)][warp_] = make_float2(least, greatest);
    }
    meet();  // nobody needs what lay aside any more
    for (int r = warp_; r < Tile::group_queries; r += 4) {
      const int row   = group_ * Tile::group_queries + r;
      float     least = __int_as_float(0x7f800000), greatest = -least;
#pragma unroll
      for (const float2& extent : shared_.extents[row]) {
        least    = fminf(least, extent.x);
        greatest = fmaxf(greatest, extent.y);
      }
      restart(row, no_entry, 0, window(least, greatest, 1.5f));
      open_bins(row, __int_as_float(0x7fffffff));
    }
    meet();
  }

  /// A row's bins start anew, empty.
  __device__ void restart(int row, Entry threshold, int count, const ScoreBins& window) const {
    __syncwarp();
    if (lane_ == 0) set_rejected(row, {__int_as_float(0x7fffffff), -1});
    __threadfence_block();
    clear_bins(bins_of(row), lane_);
    if (lane_ == 0) state_of(row) = {.threshold = threshold, .window = window, .count = count};
    __syncwarp();
  }

  /// From now on the bins may be read.
  __device__ void open_bins(int row, float rejected_score) {
    __threadfence_block();
    __syncwarp();
    if (lane_ == 0) set_rejected(row, {rejected_score, epoch_});
    epoch_ = (epoch_ + 1) & 0x7fffffff;
    __syncwarp();
  }

  /// Bins over `reach` times the span of the scores seen; scale 0 if there is no span.
  __device__ static ScoreBins window(float least, float greatest, float reach) {
    const float span  = greatest - least;
    const float scale = Tile::bins / (reach * span);
    return span > 0.0f && scale > 0.0f && scale < 3.0e38f ? ScoreBins{least, scale} : ScoreBins{0.0f, 0.0f};
  }

  /// Those of the lane's scores that are not surely beaten.
  __device__ void append(const Scores& scores, int key, bool cut_follows) {
    float below[own_rows];
    bool  passes = false;
#pragma unroll
    for (int r = 0; r < own_rows; ++r) {
      below[r] = reinterpret_cast<const volatile RejectedScore&>(shared_.rejected[own_row(r)]).score;
      passes |= !(scores[r][0] <= below[r]) | !(scores[r][1] <= below[r]);
    }
    if (!__any_sync(0xffffffffu, passes)) return;
#pragma unroll
    for (int r = 0; r < own_rows; ++r) {
      const int      row    = own_row(r);
      const RowKeys& keys   = item().rows[row];
      RowState&      state  = state_of(row);
      const Entry    least  = state.threshold;
      const auto     column = static_cast<std::uint32_t>(key - keys.first_key);
      const Entry    entry0 = make_entry(sortable(scores[r][0]), column), entry1 = make_entry(sortable(scores[r][1]), column + 8);
      const bool     take0    = !(scores[r][0] <= below[r]) & (entry0 > least) & (keys.begin <= key) & (key < keys.end);
      const bool     take1    = !(scores[r][1] <= below[r]) & (entry1 > least) & (keys.begin <= key + 8) & (key + 8 < keys.end);
      const unsigned row_mask = lanes_of_a_row << lane_ % 4, before_me = row_mask & ((1u << lane_) - 1);
      const unsigned mask0 = __ballot_sync(0xffffffffu, take0), mask1 = __ballot_sync(0xffffffffu, take1);
      const int      n0 = __popc(mask0 & row_mask), n = n0 + __popc(mask1 & row_mask);
      int            place = ptx::atom_shared_add_if(lane_ < 4 && n > 0, &state.count, n);
      if (lane_ < 4 && n > 0 && cut_follows && place + n > limit()) atomicOr(&shared_.full[group_][parity_], 1u << (r * 4 + lane_));
      place               = __shfl_sync(0xffffffffu, place, lane_ % 4);
      Entry* const buffer = buffer_of(row);
      ptx::st_global_if(take0, buffer + place + __popc(mask0 & before_me), entry0);
      ptx::st_global_if(take1, buffer + place + n0 + __popc(mask1 & before_me), entry1);
      const ScoreBins      bins    = state.window;
      std::uint32_t* const counter = bins_of(row);
      ptx::red_shared_inc_if(take0, counter + bins(scores[r][0]));
      ptx::red_shared_inc_if(take1, counter + bins(scores[r][1]));
    }
  }

  /// The buffer is full: back to the k best, the k-th of which is the threshold, and new bins from there.  The row's owner alone.
  __device__ void cut(int row) {
    constexpr int        in_flight = 4;
    Entry* const         buffer    = buffer_of(row);
    std::uint32_t* const bins      = bins_of(row);
    const int            count     = state_of(row).count;
    restart(row, no_entry, 0, {0.0f, 0.0f});
    const Entry     kth = kth_entry<in_flight>(buffer, count, static_cast<int>(call_.output.top_k), bins, lane_);
    Entry           greatest;
    const int       kept = keep_from<in_flight>(buffer, count, kth, greatest, lane_);
    const ScoreBins of   = window(score_of(kth), score_of(greatest), 2.0f);
    restart(row, kth, kept, of);
    for_each_entry<in_flight>(buffer, kept, lane_, [&](Entry entry, bool real) {
      if (real) atomicAdd(&bins[of(score_of(entry))], 1u);
    });
    open_bins(row, just_below(static_cast<std::uint32_t>(kth >> 32)));
  }

  /// indexer_score: -infinity where a key is not legal, or the legal ones alone.
  __device__ void store(const Scores& scores, int key) const {
    const int first_row = item().first_row(group_) + lane_ % 4;
#pragma unroll
    for (int r = 0; r < own_rows; ++r) {
      const std::int64_t row = item().row + first_row + r * 4;
      if (row >= call_.problem.queries) continue;
      const RowKeys& keys = item().rows[first_row + r * 4];
      float* const   to   = call_.scores + item().batch * call_.score_strides[0] + row * call_.score_strides[1];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int64_t column = static_cast<std::int64_t>(key) + 8 * i - keys.first_key;
        const bool         legal  = keys.begin <= key + 8 * i && key + 8 * i < keys.end;
        if (column >= 0 && column < call_.score_columns) to[column] = legal ? scores[r][i] : -__int_as_float(0x7f800000);
      }
    }
  }

  const IndexerCall&   call_;
  SharedState<Tile>&   shared_;
  unsigned char* const scratch_;
  const int            team_, group_, warp_, lane_;
  int                  slot_ = 0, parity_ = 0;
  std::int32_t         epoch_ = 0;
};

/// What the warp's first lane reads of a word that other warps change: lanes of their own might see different moments.
template <class Word>
__device__ Word first_lanes(const Word& word) {
  return __shfl_sync(0xffffffffu, const_cast<const volatile Word&>(word), 0);
}

/// The warp that raises thresholds: the highest bin edge that k counted entries reach.  A score in a lower bin loses against k others
/// whatever its index, since bins never fall as scores rise; that a threshold comes late only admits too much.
template <class Tile>
__device__ void raise_thresholds(const IndexerCall& call, SharedState<Tile>& shared, const unsigned char* scratch, int lane) {
  const int k = static_cast<int>(call.output.top_k);
  while (first_lanes(shared.math_warps_left) > 0) {
    for (int row = 0; row < Tile::queries; ++row) {
      const std::uint64_t before = first_lanes(reinterpret_cast<const std::uint64_t&>(shared.rejected[row]));
      const auto          known  = Kokkos::bit_cast<RejectedScore>(before);
      if (known.epoch < 0) continue;
      __threadfence_block();
      __syncwarp();  // every lane reads its bins after the epoch
      const auto* const bins = reinterpret_cast<const std::uint32_t*>(scratch + Tile::bins_offset) + row * Tile::bins;
      const int         bin  = BinCounts(bins, lane).find(k, lane).bin;
      const float       edge = shared.rows[row].window.edge(bin);
      __threadfence_block();
      if (lane == 0 && edge == edge && !(edge <= known.score))
        atomicCAS(reinterpret_cast<unsigned long long*>(&shared.rejected[row]), before,
                  Kokkos::bit_cast<std::uint64_t>(RejectedScore{edge, known.epoch}));
      __syncwarp();
    }
    __nanosleep(100);
  }
}

}  // namespace Tributary::Impl::SM90
