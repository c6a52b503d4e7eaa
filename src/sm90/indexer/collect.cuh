#pragma once
#include "sm90/indexer/emit.cuh"
#include "sm90/indexer/parameters.cuh"
#include "sm90/indexer/score.cuh"
#include "sm90/indexer/select.cuh"
#include "sm90/indexer/tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/predicated.cuh"

// What becomes of scores in indexer_topk: a math warp appends those that beat their row's threshold to the row's buffer in device memory
// (mostly in the second-level cache), while the next tile is multiplied; at the item's end it sorts a row's.

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
  using Scores                   = typename Scoring<Tile>::Scores;
  static constexpr bool collects = true;
  /// Tiles whose scores are taken before the next one is multiplied.
  static constexpr int  opening        = 2;
  static constexpr bool shares_queries = false;

  __device__ Collector(const IndexerCall& call, SharedState<Tile>& shared, unsigned char* scratch, int team, int warp, int lane)
      : call_(call), shared_(shared), scratch_(scratch), team_(team), group_(warp / 4), warp_(warp % 4), lane_(lane) {}

  /// \param slot  of the item that the tiles to come belong to
  __device__ void begin(int slot) { slot_ = slot; }

  /// After the item's last tile: each warp sorts a row.
  __device__ void finish() const {
    meet();
    static_assert(Tile::list_bytes >= math_warps * static_cast<int>(sizeof(SortRoom)));
    const Collector own  = apart();
    SortRoom&       room = reinterpret_cast<SortRoom*>(scratch_ + own.group_ * Tile::group_offset)[own.warp_];
#pragma unroll 1
    for (int r = 0; r < own_rows; ++r) own.emit(own.cut_row(r), room);
    ptx::fence_proxy_async();  // the room lies where the copy engine puts the next queries
  }

  /// Rows to be cut before tile j is multiplied, a bit each: what was marked three tiles before, after which the warps of the group have
  /// met.  May be asked for from the moment on that tile j - 1 is multiplied.
  __device__ std::uint32_t full_rows(int j) const { return const_cast<const volatile std::uint32_t&>(marks(j - 3)); }

  /// Rows whose buffers are full go back to their k best.
  __device__ void cut_rows(int j, std::uint32_t full) {
    Collector own = apart();
    own.cut_own_rows(full);
    epoch_ = own.epoch_;
    if (warp_ == 0 && lane_ == 0) marks(j - 3) = 0;
    __syncwarp();
  }

  /// Tile number j >= opening of the item's `tiles`, whose first key is first_key.
  __device__ void take(int j, int tiles, const Scores& scores, std::int32_t first_key) {
    append(j, tiles, scores, first_key + warp_ * 16 + lane_ / 4);
  }

  /// The same for the first ones.
  __device__ void open(int j, int tiles, const Scores& scores, std::int32_t first_key) {
    const int key = first_key + warp_ * 16 + lane_ / 4;
    if (j == 0 && tiles > 1) return put_aside(scores);
    Scores before;  // the first tile's: the second one lies far from it
    if (j == 1) take_back(before);
    const int key_before = item().key + warp_ * 16 + lane_ / 4;
    open_rows(scores, key, before, key_before, j == 1);
    if (j == 1) append(j, tiles, before, key_before);
    append(j, tiles, scores, key);
  }

 private:
  static constexpr int   own_rows = Scoring<Tile>::own_rows;
  static constexpr Entry no_tie   = no_entry;  // its score is NaN

  __device__ const WorkItem<Tile::queries>& item() const { return shared_.items[slot_]; }
  /// Of the lane's r-th row, in the team's tile.
  __device__ int own_row(int r) const { return group_ * Tile::group_queries + r * 4 + lane_ % 4; }
  /// The r-th row that the warp opens and cuts.
  __device__ int       cut_row(int r) const { return group_ * Tile::group_queries + r * 4 + warp_; }
  __device__ RowState& state_of(int row) const { return shared_.rows[row]; }
  __device__ std::uint32_t* bins_of(int row) const {
    return reinterpret_cast<std::uint32_t*>(scratch_ + Tile::bins_offset) + row * Tile::bins;
  }
  __device__ Candidate* buffer_of(int row) const { return buffer<Tile>(call_, team_, row); }
  /// Beyond so many candidates a row is marked, and cut when one more tile has been taken; behind them fit those of an item's last three
  /// tiles, whose marks nobody would see.  (Four tiles always fit.)
  __device__ int limit() const { return call_.plan.capacity - 3 * Tile::keys; }
  /// Where tile j's marks go: nobody makes any there while those are read, three tiles later.
  __device__ std::uint32_t& marks(int j) const { return shared_.full[group_][j & 1]; }

  /// The four warps of the group meet.  Each then sees what the others have appended; no fence of the device is needed, which would take
  /// some 1500 clocks.
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

  /// The same, of which the compiler does not know so: what it works out from this one for work that is rarely done is not kept in
  /// registers meanwhile.
  __device__ Collector apart() const {
    Collector copy = *this;
    for (int* const number : {&copy.team_, &copy.group_, &copy.warp_, &copy.lane_, &copy.slot_}) ptx::forget(*number);
    return copy;
  }

  __device__ void cut_own_rows(std::uint32_t full) {
    meet();
#pragma unroll 1
    for (int r = 0; r < own_rows; ++r)
      if ((full >> (r * 4 + warp_) & 1) != 0 && state_of(cut_row(r)).count > limit()) cut(cut_row(r));
    __threadfence_block();
    meet();
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
#pragma unroll 1
    for (int r = 0; r < own_rows; ++r) {
      const int row   = cut_row(r);
      float     least = __int_as_float(0x7f800000), greatest = -least;
#pragma unroll
      for (const float2& extent : shared_.extents[row]) {
        least    = fminf(least, extent.x);
        greatest = fmaxf(greatest, extent.y);
      }
      restart(row, 0, window(least, greatest, 1.5f), no_tie);
      open_bins(row, __int_as_float(0x7fffffff));
    }
    meet();
  }

  /// A row's bins start anew, empty.
  __device__ void restart(int row, int count, const ScoreBins& window, Entry kth) const {
    __syncwarp();
    if (lane_ == 0) set_rejected(row, {__int_as_float(0x7fffffff), -1});
    __threadfence_block();
    clear_bins(bins_of(row), lane_);
    if (lane_ == 0) {
      const RowKeys keys = item().rows[row];
      state_of(row)      = {.filter = {.window     = window,
                                       .tie_score  = score_of(kth),
                                       .tie_column = index_of(kth),
                                       .first_key  = keys.first_key,
                                       .begin      = keys.begin,
                                       .legal      = static_cast<std::uint32_t>(keys.end - keys.begin)},
                            .count  = count};
    }
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

  /// Those of the lane's scores that are not surely beaten.  In straight lines, whose chains of dependent instructions overlap: this
  /// has to be done before the tile that is being multiplied is.
  __device__ void append(int j, int tiles, const Scores& scores, int key) {
    float below[own_rows];
    bool  passes = false;
#pragma unroll
    for (int r = 0; r < own_rows; ++r) {
      below[r] = reinterpret_cast<const volatile RejectedScore&>(shared_.rejected[own_row(r)]).score;
      passes |= !(scores[r][0] <= below[r]) | !(scores[r][1] <= below[r]);
    }
    if (!__any_sync(0xffffffffu, passes)) return;
    const int most = j + 3 < tiles ? limit() : 0x7fffffff;  // the last tiles' marks nobody would see
#pragma unroll
    for (int r = 0; r < own_rows; ++r) {
      const int       row    = own_row(r);
      RowState&       state  = state_of(row);
      const RowFilter known  = state.filter;
      const int       column = key - known.first_key;
      std::uint32_t   takes[2];  // 1 or 0
#pragma unroll
      for (int i = 0; i < 2; ++i)
        takes[i] = !(scores[r][i] <= below[r]) & !((scores[r][i] == known.tie_score) & (column + 8 * i > known.tie_column)) &
                           (static_cast<std::uint32_t>(key + 8 * i - known.begin) < known.legal)
                       ? 1
                       : 0;
      const int n     = static_cast<int>(takes[0] + takes[1]);
      const int place = atomicAdd(&state.count, n);
#pragma unroll
      for (int i = 0; i < 2; ++i) ptx::red_shared_add(bins_of(row) + known.window(scores[r][i]), takes[i]);
      Candidate* const buffer = buffer_of(row);
      ptx::st_global_if(takes[0] != 0, buffer + place, make_candidate(scores[r][0], column));
      ptx::st_global_if(takes[1] != 0, buffer + (place + static_cast<int>(takes[0])), make_candidate(scores[r][1], column + 8));
      if (place + n > most) [[unlikely]]
        atomicOr(&marks(j), 1u << (r * 4 + lane_ % 4));
    }
  }

  /// A row's k best, at the item's end.
  __device__ void emit(int row, SortRoom& room) const {
    if (item().row + row >= call_.problem.queries) return;
    const RowOutput out(call_, item().batch, item().row + row, item().split);
    emit_row(out, out.by_index(call_), state_of(row).filter.window, state_of(row).count, buffer_of(row), bins_of(row), room, lane_);
    __syncwarp();
    if (lane_ == 0) state_of(row).count = 0;  // an item without keys opens no row
  }

  /// The buffer is full: back to the k best, the k-th of which is the threshold, and new bins from there.  The row's owner alone.
  __device__ void cut(int row) {
    constexpr int        in_flight = 4;
    Candidate* const     buffer    = buffer_of(row);
    std::uint32_t* const bins      = bins_of(row);
    const int            count     = state_of(row).count;
    restart(row, 0, {0.0f, 0.0f}, no_tie);
    const Entry     kth = kth_entry<in_flight>(buffer, count, static_cast<int>(call_.output.top_k), bins, lane_);
    Entry           greatest;
    const int       kept = keep_from<in_flight>(buffer, count, kth, greatest, lane_);
    const ScoreBins of   = window(score_of(kth), score_of(greatest), 2.0f);
    restart(row, kept, of, kth);
    for_each_entry<in_flight>(buffer, kept, lane_, [&](Entry entry, bool real) {
      if (real) atomicAdd(&bins[of(score_of(entry))], 1u);
    });
    open_bins(row, just_below(static_cast<std::uint32_t>(kth >> 32)));
  }

  const IndexerCall&   call_;
  SharedState<Tile>&   shared_;
  unsigned char* const scratch_;
  int                  team_, group_, warp_, lane_;
  int                  slot_  = 0;
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
      const float       edge = shared.rows[row].filter.window.edge(bin);
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
