#pragma once
#include "sm90/indexer/parameters.cuh"
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
        scores_(reinterpret_cast<float*>(scratch + Tile::scores_offset) + group * Tile::score_slots * Tile::slot_floats),
        bins_(reinterpret_cast<std::uint32_t*>(scratch + Tile::bins_offset) + group * Tile::group_queries * Tile::bins),
        rows_(shared.rows + group * Tile::group_queries),
        buffers_(call.plan.candidates +
                 (static_cast<std::int64_t>(team) * Tile::queries + group * Tile::group_queries) * call.plan.capacity),
        group_(group),
        lane_(lane) {}

  __device__ void run() {
    std::uint32_t round = 0;
    for (RingPosition<2> item_at;; item_at.next(), round ^= 1) {
      ptx::mbarrier_wait(&shared_.item_full[item_at.slot], item_at.round);
      const auto& item = shared_.items[item_at.slot];
      if (item.batch < 0) break;
      ptx::mbarrier_wait(&shared_.queries_empty[group_], round ^ 1);  // the rows before have been sorted
      if (call_.scores != nullptr)
        store(item);
      else
        collect(item);
      __threadfence_block();
      __syncwarp();
      if (lane_ == 0) {
        ptx::mbarrier_arrive(&shared_.collected[group_]);
        ptx::mbarrier_arrive(&shared_.item_empty[item_at.slot]);
      }
    }
  }

 private:
  using Item                = WorkItem<Tile::queries>;
  static constexpr int rows = Tile::group_queries;
  static constexpr int step = 4;  // rows looked at together

  /// Two neighbouring keys a lane.
  struct Pair {
    float score[2];
  };
  __device__ Pair scores(int slot, int row) const {
    const auto pair = *reinterpret_cast<const float2*>(scores_ + slot * Tile::slot_floats + row * Tile::score_stride + 2 * lane_);
    return {pair.x, pair.y};
  }
  __device__ Pair scaled(int slot, int row, const Pair& scales) const {
    const Pair pair = scores(slot, row);
    return {pair.score[0] * scales.score[0], pair.score[1] * scales.score[1]};
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

  /// Calls tile(slot, first of this lane's two keys, scales of both) for every tile of keys.
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
      scales = key_scales(item, key);  // of the next tile
      on_tile(j, at_.slot, this_key, this_scales, key, scales);
      __syncwarp();
      if (lane_ == 0) ptx::mbarrier_arrive(&shared_.scores_empty[group_][at_.slot]);
      at_.next();
    }
  }

  __device__ void collect(const Item& item) {
    clear_rows();
    for_each_tile(item, [&](int j, int slot, int key, const Pair& scales, int next_key, const Pair& next_scales) {
      if (j == 0) {  // the second tile lies far from the first
        RingPosition<Tile::score_slots> second = at_;
        second.next();
        if (item.key_tiles > 1) ptx::mbarrier_wait(&shared_.scores_full[group_][second.slot], second.round);
        for (int row = 0; row < rows; ++row)
          place_window(item, row, slot, key, scales, item.key_tiles > 1 ? second.slot : slot, item.key_tiles > 1 ? next_key : key,
                       item.key_tiles > 1 ? next_scales : scales);
        __syncwarp();
      }
#pragma unroll 1
      for (int row = 0; row < rows; row += step) append(item, row, slot, key, scales);
    });
  }

  __device__ void clear_rows() {
    for (int row = 0; row < rows; ++row) clear_bins(bins_ + row * Tile::bins, lane_);
    if (lane_ < rows)
      rows_[lane_] = {.threshold = no_entry,
                      .below     = __int_as_float(0x7fffffff),
                      .window    = {0.0f, 0.0f},
                      .count     = 0,
                      .update    = static_cast<std::int32_t>(call_.output.top_k),
                      .unused    = 0};
    __syncwarp();
  }

  __device__ void place_window(const Item& item, int row, int slot0, int key0, const Pair& scales0, int slot1, int key1,
                               const Pair& scales1) {
    const RowKeys keys = keys_of(item, row);
    float         least = __int_as_float(0x7f800000), greatest = -least;
    const auto    see = [&](int slot, int key, const Pair& scales) {
      const Pair pair = scaled(slot, row, scales);
      for (int i = 0; i < 2; ++i) {
        const float score = pair.score[i];
        if (!has(keys, key + i) || !(fabsf(score) <= 3.0e38f)) continue;
        least    = fminf(least, score);
        greatest = fmaxf(greatest, score);
      }
    };
    see(slot0, key0, scales0);
    see(slot1, key1, scales1);
    for (int distance = 16; distance > 0; distance /= 2) {
      least    = fminf(least, __shfl_xor_sync(0xffffffffu, least, distance));
      greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, distance));
    }
    if (lane_ == 0) rows_[row].window = window(least, greatest, 1.5f);
  }

  /// Bins over `reach` times the span of the scores seen; scale 0 if there is no span.
  __device__ static ScoreBins window(float least, float greatest, float reach) {
    const float span  = greatest - least;
    const float scale = Tile::bins / (reach * span);
    return span > 0.0f && scale > 0.0f && scale < 3.0e38f ? ScoreBins{least, scale} : ScoreBins{0.0f, 0.0f};
  }

  /// Rows row ... row + 3 of a tile.
  __device__ void append(const Item& item, int row, int slot, int key, const Pair& scales) {
    unsigned passing = 0;
#pragma unroll
    for (int r = 0; r < step; ++r) {
      const Pair  pair  = scaled(slot, row + r, scales);
      const float below = rows_[row + r].below;
      for (const float score : pair.score) passing |= score <= below ? 0u : 1u << r;
    }
    passing = __reduce_or_sync(0xffffffffu, passing);
    for (; passing != 0; passing &= passing - 1) {
      const int r = __ffs(static_cast<int>(passing)) - 1;
      append_row(item, row + r, key, scaled(slot, row + r, scales));
    }
  }

  __device__ void append_row(const Item& item, int row, int key, const Pair& pair) {
    const RowKeys        keys   = keys_of(item, row);
    const RowState       state  = rows_[row];
    Entry* const         buffer = buffers_ + static_cast<std::int64_t>(row) * call_.plan.capacity;
    std::uint32_t* const bins   = bins_ + row * Tile::bins;
    int                  count  = state.count;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const Entry    entry = make_entry(sortable(pair.score[i]), static_cast<std::uint32_t>(key + i - keys.first_key));
      const bool     take  = entry > state.threshold && has(keys, key + i);
      const unsigned mask  = __ballot_sync(0xffffffffu, take);
      if (take) {
        buffer[count + __popc(mask & ((1u << lane_) - 1))] = entry;
        atomicAdd(&bins[state.window(pair.score[i])], 1u);
      }
      count += __popc(mask);
    }
    __syncwarp();
    if (lane_ == 0) rows_[row].count = count;
    __syncwarp();
    if (count >= state.update) raise_threshold(row);
    if (count > call_.plan.capacity - Tile::keys) cut(row);
  }

  /// The highest bin edge that k counted entries reach becomes the threshold: a score in a lower bin loses against k others whatever its index.
  __device__ void raise_threshold(int row) {
    RowState& state = rows_[row];
    const int k     = static_cast<int>(call_.output.top_k);
    const int bin   = BinCounts(bins_ + row * Tile::bins, lane_).find(k, lane_).bin;
    if (lane_ == 0) {
      state.update       = state.count + max(16, k / 16);
      const ScoreBins of = state.window;
      const float     edge = of.low + (static_cast<float>(bin) - 0.0625f) / of.scale;
      // bins never fall as scores rise, so whatever is not above such an edge lies in a lower bin
      if (bin >= 1 && of(edge) < bin && edge == edge && !(edge <= state.below)) {
        const Entry threshold = static_cast<Entry>(sortable(edge)) << 32 | 0xffffffffu;
        if (threshold > state.threshold) {
          state.threshold = threshold;
          state.below     = edge;
        }
      }
    }
    __syncwarp();
  }

  /// The buffer is full: back to the k best, the k-th of which is the threshold, and new bins from there.
  __device__ void cut(int row) {
    constexpr int        in_flight = 4;  // what the registers take
    RowState&            state     = rows_[row];
    Entry* const         buffer    = buffers_ + static_cast<std::int64_t>(row) * call_.plan.capacity;
    std::uint32_t* const bins      = bins_ + row * Tile::bins;
    const int            k         = static_cast<int>(call_.output.top_k);
    __syncwarp();
    const Entry     kth = kth_entry<in_flight>(buffer, state.count, k, bins, lane_);
    Entry           greatest;
    const int       kept = keep_from<in_flight>(buffer, state.count, kth, greatest, lane_);
    const ScoreBins of   = window(score_of(kth), score_of(greatest), 2.0f);
    for_each_entry<in_flight>(buffer, kept, lane_, [&](Entry entry, bool real) {
      if (real) atomicAdd(&bins[of(score_of(entry))], 1u);
    });
    __syncwarp();
    if (lane_ == 0) {
      state.threshold = kth;
      state.below     = just_below(static_cast<std::uint32_t>(kth >> 32));
      state.window    = of;
      state.count     = kept;
      state.update    = kept + max(16, k / 16);
    }
    __syncwarp();
  }

  /// indexer_score: every column of every row, -infinity where a key is not legal.
  __device__ void store(const Item& item) {
    const auto column_of = [&](const RowKeys& keys, int key) { return static_cast<std::int64_t>(key) - keys.first_key; };
    const auto to        = [&](int row) {
      return call_.scores + item.batch * call_.score_strides[0] + (item.row + group_ * rows + row) * call_.score_strides[1];
    };
    const auto exists = [&](int row) { return item.row + group_ * rows + row < call_.problem.queries; };
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
  float* const                    scores_;
  std::uint32_t* const            bins_;
  RowState* const                 rows_;
  Entry* const                    buffers_;
  const int                       group_, lane_;
  RingPosition<Tile::score_slots> at_;
};

}  // namespace Tributary::Impl::SM90
