#pragma once
#include "sm90/indexer/load.cuh"
#include "sm90/indexer/parameters.cuh"
#include "sm90/indexer/select.cuh"
#include "sm90/indexer/tile.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/predicated.cuh"

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
  // A lane looks at one row alone and keeps what it must know of it in registers: 8 or 16 keys of every tile, in fours.
  static constexpr int      row_lanes      = 32 / rows;
  static constexpr int      own_keys       = Tile::keys / row_lanes;
  static constexpr unsigned lanes_of_a_row = (1u << row_lanes) - 1;

  /// This lane's keys of a tile, i = 0 ... own_keys - 1.
  struct alignas(16) OwnKeys {
    float of[own_keys];
  };
  __device__ int row() const { return lane_ / row_lanes; }
  __device__ int own_key(int i) const { return (i / 4) * (4 * row_lanes) + lane_ % row_lanes * 4 + i % 4; }

  /// Scores of this lane's row.
  __device__ const float* row_scores(int slot) const {
    return reinterpret_cast<const float*>(scratch_ + Tile::scores_offset) + (group_ * Tile::score_slots + slot) * Tile::slot_floats +
           row() * Tile::score_stride;
  }
  __device__ OwnKeys scores(int slot) const {
    OwnKeys scores;
#pragma unroll
    for (int i = 0; i < own_keys; i += 4)
      *reinterpret_cast<float4*>(scores.of + i) = *reinterpret_cast<const float4*>(row_scores(slot) + own_key(i));
    return scores;
  }
  __device__ const RowKeys& keys_of(const Item& item, int row) const { return item.rows[item.first_row(group_) + row]; }
  __device__ RowState&      state_of(int row) const { return shared_.rows[group_ * rows + row]; }
  __device__ RejectedScore& rejected(int row) const { return shared_.rejected[group_ * rows + row]; }
  /// In one piece, and by an atomic: PTX promises nothing of a compare-and-swap beside ordinary stores to shared memory.
  __device__ void set_rejected(int row, const RejectedScore& to) const {
    atomicExch(reinterpret_cast<unsigned long long*>(&rejected(row)), Kokkos::bit_cast<std::uint64_t>(to));
  }
  __device__ std::uint32_t* bins_of(int row) const {
    return reinterpret_cast<std::uint32_t*>(scratch_ + Tile::bins_offset) + (group_ * rows + row) * Tile::bins;
  }
  __device__ Entry* buffer_of(int row) const { return buffers_ + static_cast<std::int64_t>(row) * call_.plan.capacity; }

  /// Calls tile(number, slot, first key, the next tile's) for every tile of keys that is this group's.
  template <class OnTile>
  __device__ void for_each_tile(const Item& item, const OnTile& on_tile) {
    KeyTileOrder order(item.key_tiles, item.period, item.stride);
    for (int j = 0; j < item.key_tiles; ++j) {
      const int key = item.key + order.at * Tile::keys;
      order.next();
      if (!item.has_tile(group_, j)) continue;
      ptx::mbarrier_wait(&shared_.scores_full[group_][at_.slot], at_.round);
      on_tile(j, at_.slot, key, item.key + order.at * Tile::keys);
      __syncwarp();
      if (lane_ == 0) ptx::mbarrier_arrive(&shared_.scores_empty[group_][at_.slot]);
      at_.next();
    }
  }

  /// What a lane knows of its row.
  struct OwnRow {
    RowKeys   keys;
    Entry     threshold;
    ScoreBins window;
    int       count;
  };

  __device__ void collect(const Item& item) {
    for (int r = 0; r < rows; ++r) restart(r, no_entry, 0, {0.0f, 0.0f});
    OwnRow own{keys_of(item, row()), no_entry, {0.0f, 0.0f}, 0};
    for_each_tile(item, [&](int j, int slot, int key, int next_key) {
      if (j == 0) {  // the second tile lies far from the first
        RingPosition<Tile::score_slots> second = at_;
        second.next();
        const bool two = item.key_tiles > 1;
        if (two) ptx::mbarrier_wait(&shared_.scores_full[group_][second.slot], second.round);
        own.window = first_window(own.keys, scores(slot), key, scores(two ? second.slot : slot), two ? next_key : key);
        if (lane_ % row_lanes == 0) state_of(row()).window = own.window;
        for (int r = 0; r < rows; ++r) open_bins(r, __int_as_float(0x7fffffff));
      }
      append(slot, key, own);
    });
    if (lane_ % row_lanes == 0) state_of(row()).count = own.count;
  }

  /// A row's bins start anew, empty.
  __device__ void restart(int row, Entry threshold, int count, const ScoreBins& window) {
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

  /// Of this lane's row, from its scores in two tiles.
  __device__ ScoreBins first_window(const RowKeys& keys, const OwnKeys& scores0, int key0, const OwnKeys& scores1, int key1) const {
    float      least = __int_as_float(0x7f800000), greatest = -least;
    const auto see = [&](const OwnKeys& scores, int first_key) {
#pragma unroll
      for (int i = 0; i < own_keys; ++i) {
        const int  key  = first_key + own_key(i);
        const bool seen = (keys.begin <= key) & (key < keys.end) & (fabsf(scores.of[i]) <= 3.0e38f);
        least           = seen ? fminf(least, scores.of[i]) : least;
        greatest        = seen ? fmaxf(greatest, scores.of[i]) : greatest;
      }
    };
    see(scores0, key0);
    see(scores1, key1);
#pragma unroll
    for (int distance = row_lanes / 2; distance > 0; distance /= 2) {
      least    = fminf(least, __shfl_xor_sync(0xffffffffu, least, distance));
      greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, distance));
    }
    return window(least, greatest, 1.5f);
  }

  /// Bins over `reach` times the span of the scores seen; scale 0 if there is no span.
  __device__ static ScoreBins window(float least, float greatest, float reach) {
    const float span  = greatest - least;
    const float scale = Tile::bins / (reach * span);
    return span > 0.0f && scale > 0.0f && scale < 3.0e38f ? ScoreBins{least, scale} : ScoreBins{0.0f, 0.0f};
  }

  /// A lane's keys that are not surely beaten, one after the other: a few rounds of a short loop, since few are left of a tile.  (All keys
  /// in straight-line code is three times the instructions, and a single warp is fed little faster than it executes them.)
  __device__ void append(int slot, int first_key, OwnRow& own) {
    const float   below = reinterpret_cast<const volatile RejectedScore&>(rejected(row())).score;
    std::uint32_t left  = 0;
    {
      const OwnKeys all    = scores(slot);
      bool          passes = false;
#pragma unroll
      for (const float score : all.of) passes |= !(score <= below);
      if (!__any_sync(0xffffffffu, passes)) return;
#pragma unroll
      for (int i = 0; i < own_keys; ++i) left |= all.of[i] <= below ? 0u : 1u << i;
    }
    const unsigned       row_mask = lanes_of_a_row << (row() * row_lanes), before_me = row_mask & ((1u << lane_) - 1);
    Entry* const         buffer = buffer_of(row());
    std::uint32_t* const bins   = bins_of(row());
#pragma unroll 1
    while (__any_sync(0xffffffffu, left != 0)) {
      constexpr int together = 2;  // whose chains of instructions overlap
      float         score[together];
      Entry         entry[together];
      bool          take[together];
#pragma unroll
      for (int u = 0; u < together; ++u) {
        const int i   = left != 0 ? __ffs(static_cast<int>(left)) - 1 : 0;
        const int key = first_key + own_key(i);
        score[u]      = row_scores(slot)[own_key(i)];
        entry[u]      = make_entry(sortable(score[u]), static_cast<std::uint32_t>(key - own.keys.first_key));
        take[u]       = (left != 0) & (entry[u] > own.threshold) & (own.keys.begin <= key) & (key < own.keys.end);
        left &= left - 1;
      }
      unsigned mask[together];
#pragma unroll
      for (int u = 0; u < together; ++u) mask[u] = __ballot_sync(0xffffffffu, take[u]);
#pragma unroll
      for (int u = 0; u < together; ++u) {
        ptx::st_global_if(take[u], buffer + own.count + __popc(mask[u] & before_me), entry[u]);
        own.count += __popc(mask[u] & row_mask);
      }
#pragma unroll
      for (int u = 0; u < together; ++u) ptx::red_shared_inc_if(take[u], bins + own.window(score[u]));
    }
    const bool full = own.count > call_.plan.capacity - Tile::keys;
    for (unsigned lanes = __ballot_sync(0xffffffffu, full); lanes != 0;) {
      const int full_row = (__ffs(static_cast<int>(lanes)) - 1) / row_lanes;
      cut(full_row, __shfl_sync(0xffffffffu, own.count, full_row * row_lanes));
      lanes &= ~(lanes_of_a_row << (full_row * row_lanes));
      if (row() == full_row) {
        const RowState& state = state_of(full_row);
        own.threshold         = state.threshold;
        own.window            = state.window;
        own.count             = state.count;
      }
    }
  }

  /// The buffer is full: back to the k best, the k-th of which is the threshold, and new bins from there.
  __device__ void cut(int row, int count) {
    constexpr int        in_flight = 4;  // what the registers take
    Entry* const         buffer    = buffer_of(row);
    std::uint32_t* const bins      = bins_of(row);
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

  /// indexer_score: every column of every row, -infinity where a key is not legal, or the legal ones alone.
  __device__ void store(const Item& item) {
    const auto to = [&](int row) {
      return call_.scores + item.batch * call_.score_strides[0] + (item.row + item.first_row(group_) + row) * call_.score_strides[1];
    };
    const auto exists = [&](int row) { return item.row + item.first_row(group_) + row < call_.problem.queries; };
    if (!call_.only_legal && (group_ == 0 || !item.shared))
      for (int r = 0; r < rows && exists(r); ++r) store_around(item, keys_of(item, r), to(r));
    const bool    mine      = exists(row());
    const RowKeys keys      = keys_of(item, row());
    float* const  row_start = to(row());
    for_each_tile(item, [&](int, int slot, int first_key, int) {
      if (!mine) return;
#pragma unroll
      for (int i = 0; i < own_keys; i += 4) {
        const int key = first_key + own_key(i);
        store_four(*reinterpret_cast<const float4*>(row_scores(slot) + own_key(i)), row_start, key - keys.first_key,
                   keys.begin - keys.first_key, keys.end - keys.first_key);
      }
    });
  }

  /// The columns that lie before and after all tiles of keys.
  __device__ void store_around(const Item& item, const RowKeys& keys, float* to) const {
    const std::int64_t first = static_cast<std::int64_t>(item.key) - keys.first_key;
    const std::int64_t begin = clip(first, 0, call_.score_columns);
    const std::int64_t end   = clip(first + static_cast<std::int64_t>(item.key_tiles) * Tile::keys, begin, call_.score_columns);
    if (item.split == 0)
      for (std::int64_t column = lane_; column < begin; column += 32) to[column] = nothing();
    if (item.split == call_.plan.splits - 1)
      for (std::int64_t column = end + lane_; column < call_.score_columns; column += 32) to[column] = nothing();
  }

  /// Scores of columns `column` ... `column` + 3, of which [begin, end) are legal; as one vector if they can go so.
  __device__ void store_four(const float4& scores, float* to, std::int64_t column, int begin, int end) const {
    float* const at = to + column;
    if (begin <= column && column + 4 <= end && column + 4 <= call_.score_columns && reinterpret_cast<std::uintptr_t>(at) % 16 == 0) {
      *reinterpret_cast<float4*>(at) = scores;
      return;
    }
    const float of[4] = {scores.x, scores.y, scores.z, scores.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool legal = begin <= column + i && column + i < end;
      if (column + i >= 0 && column + i < call_.score_columns && (legal || !call_.only_legal)) at[i] = legal ? of[i] : nothing();
    }
  }
  __device__ static float nothing() { return -__int_as_float(0x7f800000); }

  const IndexerCall&              call_;
  SharedState<Tile>&              shared_;
  unsigned char* const            scratch_;
  Entry* const                    buffers_;
  const int                       group_, lane_;
  std::int32_t                    epoch_ = 0;
  RingPosition<Tile::score_slots> at_;
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
  while (first_lanes(shared.collectors_left) > 0) {
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
