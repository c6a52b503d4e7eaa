#pragma once
#include "sm90/indexer/parameters.cuh"
#include "sm90/indexer/load.cuh"
#include "sm90/indexer/select.cuh"
#include "sm90/indexer/tile.cuh"
#include "sm90/ptx/mbarrier.cuh"

// The collecting warps: each takes one math warpgroup's scores from shared memory and appends what beats a row's threshold to the row's
// buffer in device memory (which stays in the second-level cache), or, for indexer_score, stores them all.

namespace Tributary::Impl::SM90 {

/// The greatest float below a sortable image's score, for comparisons `score <= below`; NaN, which fails them all, below -infinity.
__device__ inline float just_below(std::uint32_t image) {
  if (image == 0) return __int_as_float(0x7fffffff);
  std::uint32_t lower = image - 1;
  if (lower == 0x7fffffffu) --lower;  // -0, which equals +0
  return score_of(static_cast<Entry>(lower) << 32);
}

template <class Tile>
class Collector {
 public:
  __device__ Collector(const IndexerCall& call, SharedState<Tile>& shared, unsigned char* scratch, int team, int group, int lane)
      : call_(call),
        shared_(shared),
        scratch_(scratch),
        buffers_(call.plan.candidates +
                 (static_cast<std::int64_t>(team) * Tile::queries + group * Tile::group_queries) * call.plan.capacity),
        group_(group),
        lane_(lane) {}

  __device__ void run() {
    if (lane_ == 0) ptx::fence_proxy_tensormap(&call_.maps()->query);
    std::uint32_t round = 0;
    for (RingPosition<2> item_at;; item_at.next(), round ^= 1) {
      ptx::mbarrier_wait(&shared_.item_full[item_at.slot], item_at.round);
      const Item& item = shared_.items[item_at.slot];
      if (item.batch < 0) break;
      ptx::mbarrier_wait(&shared_.queries_empty[group_], round ^ 1);  // the rows before have been sorted
      if (lane_ == 0) load_queries<Tile>(call_, shared_, scratch_, item, group_);
      __syncwarp();
      if (call_.scores != nullptr)
        store(item);
      else
        collect(item);
      __threadfence();  // candidates are read past the first-level cache
      __syncwarp();
      if (lane_ == 0) {
        ptx::mbarrier_arrive(&shared_.collected[group_]);
        ptx::mbarrier_arrive(&shared_.item_empty[item_at.slot]);
      }
    }
    if (lane_ == 0) atomicSub(&shared_.collectors_left, 1);
  }

 private:
  using Item                = WorkItem<Tile::queries>;
  static constexpr int rows = Tile::group_queries;
  static constexpr int step = 4;  // rows looked at together

  /// Two neighbouring keys a lane.
  struct Pair {
    float score[2];
  };
  __device__ Pair scaled(int slot, int row, const Pair& scales) const {
    const float* const scores = reinterpret_cast<const float*>(scratch_ + Tile::scores_offset) + (group_ * Tile::score_slots + slot) * Tile::slot_floats;
    const auto pair = *reinterpret_cast<const float2*>(scores + row * Tile::score_stride + 2 * lane_);
    return {pair.x * scales.score[0], pair.y * scales.score[1]};
  }
  /// The scales of this lane's keys: 1 where there are none.
  __device__ Pair key_scales(const Item& item, std::int64_t key) const {
    Pair scale{1.0f, 1.0f};
    if (sizeof(typename Tile::Element) == 1)
      for (int i = 0; i < 2; ++i)
        if (key + i < call_.problem.keys) scale.score[i] = __ldg(call_.problem.key_scale + item.batch * call_.problem.key_scale_stride + key + i);
    return scale;
  }
  __device__ const RowKeys& keys_of(const Item& item, int row) const { return item.rows[group_ * rows + row]; }
  __device__ static bool    has(const RowKeys& keys, int key) { return keys.begin <= key && key < keys.end; }
  __device__ RowState&      state_of(int row) const { return shared_.rows[group_ * rows + row]; }
  __device__ RejectedScore& rejected(int row) const { return shared_.rejected[group_ * rows + row]; }
  __device__ std::uint32_t* bins_of(int row) const {
    return reinterpret_cast<std::uint32_t*>(scratch_ + Tile::bins_offset) + (group_ * rows + row) * Tile::bins;
  }

  /// Calls tile(number, slot, first of this lane's two keys, scales of both, the same two of the next tile) for every tile of keys.
  template <class OnTile>
  __device__ void for_each_tile(const Item& item, const OnTile& on_tile) {
    KeyTileOrder order(item.key_tiles, item.period, item.stride);
    int          key    = item.key + 2 * lane_;
    Pair         scales = key_scales(item, key);
    for (int j = 0; j < item.key_tiles; ++j) {
      ptx::mbarrier_wait(&shared_.scores_full[group_][at_.slot], at_.round);
      const int  this_key    = key;
      const Pair this_scales = scales;
      order.next();
      key    = item.key + order.at * Tile::keys + 2 * lane_;
      scales = key_scales(item, key);
      on_tile(j, at_.slot, this_key, this_scales, key, scales);
      __syncwarp();
      if (lane_ == 0) ptx::mbarrier_arrive(&shared_.scores_empty[group_][at_.slot]);
      at_.next();
    }
  }

  __device__ void collect(const Item& item) {
    int count[rows] = {};
    for (int row = 0; row < rows; ++row) restart(row, no_entry, 0, {0.0f, 0.0f});
    for_each_tile(item, [&](int j, int slot, int key, const Pair& scales, int next_key, const Pair& next_scales) {
      if (j == 0) {  // the second tile lies far from the first
        RingPosition<Tile::score_slots> second = at_;
        second.next();
        const bool two = item.key_tiles > 1;
        if (two) ptx::mbarrier_wait(&shared_.scores_full[group_][second.slot], second.round);
        for (int row = 0; row < rows; ++row)
          place_window(item, row, slot, key, scales, two ? second.slot : slot, two ? next_key : key, two ? next_scales : scales);
      }
#pragma unroll
      for (int row = 0; row < rows; row += step) append(item, row, slot, key, scales, count + row);
    });
#pragma unroll
    for (int row = 0; row < rows; ++row)
      if (lane_ == 0) state_of(row).count = count[row];
  }

  /// A row's bins start anew, empty.
  __device__ void restart(int row, Entry threshold, int count, const ScoreBins& window) {
    __syncwarp();
    if (lane_ == 0) rejected(row) = {__int_as_float(0x7fffffff), -1};
    __threadfence_block();
    clear_bins(bins_of(row), lane_);
    if (lane_ == 0) state_of(row) = {.threshold = threshold, .window = window, .count = count, .unused = 0};
    __syncwarp();
  }

  /// From now on the bins may be read.
  __device__ void open_bins(int row, float rejected_score) {
    __threadfence_block();
    __syncwarp();
    if (lane_ == 0) rejected(row) = {rejected_score, epoch_};
    epoch_ = (epoch_ + 1) & 0x7fffffff;
    __syncwarp();
  }

  __device__ void place_window(const Item& item, int row, int slot0, int key0, const Pair& scales0, int slot1, int key1,
                               const Pair& scales1) {
    const RowKeys keys = keys_of(item, row);
    float         least = __int_as_float(0x7f800000), greatest = -least;
    const auto    see = [&](int slot, int key, const Pair& scales) {
      const Pair pair = scaled(slot, row, scales);
      for (int i = 0; i < 2; ++i) {
        if (!has(keys, key + i) || !(fabsf(pair.score[i]) <= 3.0e38f)) continue;
        least    = fminf(least, pair.score[i]);
        greatest = fmaxf(greatest, pair.score[i]);
      }
    };
    see(slot0, key0, scales0);
    see(slot1, key1, scales1);
    for (int distance = 16; distance > 0; distance /= 2) {
      least    = fminf(least, __shfl_xor_sync(0xffffffffu, least, distance));
      greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, distance));
    }
    if (lane_ == 0) state_of(row).window = window(least, greatest, 1.5f);
    open_bins(row, __int_as_float(0x7fffffff));
  }

  /// Bins over `reach` times the span of the scores seen; scale 0 if there is no span.
  __device__ static ScoreBins window(float least, float greatest, float reach) {
    const float span  = greatest - least;
    const float scale = Tile::bins / (reach * span);
    return span > 0.0f && scale > 0.0f && scale < 3.0e38f ? ScoreBins{least, scale} : ScoreBins{0.0f, 0.0f};
  }

  /// Rows row ... row + 3 of a tile.  Without branches between the rows: one warp has to keep up with four that score, so the rows' chains of
  /// dependent instructions must overlap.
  __device__ void append(const Item& item, int row, int slot, int key, const Pair& scales, int* count) {
    Pair pairs[step];
    bool passes = false;
#pragma unroll
    for (int r = 0; r < step; ++r) {
      pairs[r]          = scaled(slot, row + r, scales);
      const float below = reinterpret_cast<const volatile RejectedScore&>(rejected(row + r)).score;
#pragma unroll
      for (const float score : pairs[r].score) passes |= !(score <= below);
    }
    if (!__any_sync(0xffffffffu, passes)) return;
    int fullest = 0;
#pragma unroll
    for (int r = 0; r < step; ++r) {
      const RowKeys        keys   = keys_of(item, row + r);
      const RowState&      state  = state_of(row + r);
      const Entry          above  = state.threshold;
      const ScoreBins      window = state.window;
      const float          below  = reinterpret_cast<const volatile RejectedScore&>(rejected(row + r)).score;
      Entry* const         buffer = buffers_ + static_cast<std::int64_t>(row + r) * call_.plan.capacity;
      std::uint32_t* const bins   = bins_of(row + r);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float    score = pairs[r].score[i];
        const Entry    entry = make_entry(sortable(score), static_cast<std::uint32_t>(key + i - keys.first_key));
        const bool     take  = !(score <= below) && entry > above && has(keys, key + i);
        const unsigned mask  = __ballot_sync(0xffffffffu, take);
        if (take) {
          buffer[count[r] + __popc(mask & ((1u << lane_) - 1))] = entry;
          atomicAdd(&bins[window(score)], 1u);
        }
        count[r] += __popc(mask);
      }
      fullest = max(fullest, count[r]);
    }
    if (fullest > call_.plan.capacity - Tile::keys) {
#pragma unroll
      for (int r = 0; r < step; ++r)
        if (lane_ == 0) state_of(row + r).count = count[r];
      __syncwarp();
#pragma unroll 1
      for (int r = 0; r < step; ++r)
        if (state_of(row + r).count > call_.plan.capacity - Tile::keys) cut(row + r);
#pragma unroll
      for (int r = 0; r < step; ++r) count[r] = state_of(row + r).count;
      __syncwarp();
    }
  }

  /// The buffer is full: back to the k best, the k-th of which is the threshold, and new bins from there.
  __device__ void cut(int row) {
    constexpr int        in_flight = 4;  // what the registers take
    Entry* const         buffer    = buffers_ + static_cast<std::int64_t>(row) * call_.plan.capacity;
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

  /// indexer_score: every column of every row, -infinity where a key is not legal.
  __device__ void store(const Item& item) {
    const auto column_of = [&](const RowKeys& keys, int key) { return static_cast<std::int64_t>(key) - keys.first_key; };
    const auto to        = [&](int row) {
      return call_.scores + item.batch * call_.score_strides[0] + (item.row + group_ * rows + row) * call_.score_strides[1];
    };
    const auto  exists  = [&](int row) { return item.row + group_ * rows + row < call_.problem.queries; };
    const float nothing = -__int_as_float(0x7f800000);
    for (int row = 0; row < rows && exists(row); ++row) {
      const RowKeys      keys  = keys_of(item, row);
      const std::int64_t begin = clip(column_of(keys, item.key), 0, call_.score_columns);
      const std::int64_t end   = clip(column_of(keys, item.key) + item.key_tiles * Tile::keys, begin, call_.score_columns);
      for (std::int64_t column = lane_; column < begin; column += 32) to(row)[column] = nothing;
      for (std::int64_t column = end + lane_; column < call_.score_columns; column += 32) to(row)[column] = nothing;
    }
    for_each_tile(item, [&](int, int slot, int key, const Pair& scales, int, const Pair&) {
      for (int row = 0; row < rows && exists(row); ++row) {
        const RowKeys keys = keys_of(item, row);
        const Pair    pair = scaled(slot, row, scales);
        for (int i = 0; i < 2; ++i) {
          const std::int64_t column = column_of(keys, key + i);
          if (column >= 0 && column < call_.score_columns) to(row)[column] = has(keys, key + i) ? pair.score[i] : nothing;
        }
      }
    });
  }

  const IndexerCall&              call_;
  SharedState<Tile>&              shared_;
  unsigned char* const            scratch_;
  Entry* const                    buffers_;
  const int                       group_, lane_;
  std::int32_t                    epoch_ = 0;
  RingPosition<Tile::score_slots> at_;
};

/// The warp that raises thresholds: the highest bin edge that k counted entries reach.  A score in a lower bin loses against k others whatever
/// its index, since bins never fall as scores rise; that a threshold comes late only admits too much.
template <class Tile>
__device__ void raise_thresholds(const IndexerCall& call, SharedState<Tile>& shared, const unsigned char* scratch, int lane) {
  const int k = static_cast<int>(call.output.top_k);
  while (*reinterpret_cast<volatile std::int32_t*>(&shared.collectors_left) > 0) {
    for (int row = 0; row < Tile::queries; ++row) {
      const std::uint64_t before = *reinterpret_cast<volatile std::uint64_t*>(&shared.rejected[row]);
      const auto          known  = Kokkos::bit_cast<RejectedScore>(before);
      if (known.epoch < 0) continue;
      __threadfence_block();
      const auto* const bins = reinterpret_cast<const std::uint32_t*>(scratch + Tile::bins_offset) + row * Tile::bins;
      const int         bin  = BinCounts(bins, lane).find(k, lane).bin;
      const ScoreBins   of   = shared.rows[row].window;
      const float       edge = of.low + (static_cast<float>(bin) - 0.0625f) / of.scale;
      __threadfence_block();
      if (lane == 0 && bin >= 1 && of(edge) < bin && edge == edge && !(edge <= known.score))
        atomicCAS(reinterpret_cast<unsigned long long*>(&shared.rejected[row]), before,
                  Kokkos::bit_cast<std::uint64_t>(RejectedScore{edge, known.epoch}));
      __syncwarp();
    }
    __nanosleep(100);
  }
}

}  // namespace Tributary::Impl::SM90
