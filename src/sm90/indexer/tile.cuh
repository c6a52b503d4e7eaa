#pragma once
#include <cstdint>

#include "sm90/indexer/indexer.hpp"
#include "sm90/indexer/rows.cuh"
#include "sm90/launch.cuh"
#include "sm90/pipeline.cuh"
#include "topk/entry.hpp"

// Sizes of the indexer's kernel, and what its warps share.

namespace Tributary::Impl::SM90 {

/// Warps of a team.  Two warpgroups multiply; of a third one some warps have the roles below, the others end at once.
inline constexpr int math_warps = 8, team_warps = 12, team_threads = 32 * team_warps;
inline constexpr int load_warp = 8, threshold_warp = 9, scale_warp = 10;

/// 168 registers a thread at the start, divided anew: 2 x 232 + 40 = 3 x 168.
inline constexpr int math_registers = 232, other_registers = 40;

template <class Element_, int Heads_, int HeadDim_>
struct IndexerTile {
  using Element                 = Element_;
  static constexpr int heads    = Heads_;
  static constexpr int head_dim = HeadDim_;

  static constexpr int  row_bytes   = HeadDim_ * static_cast<int>(sizeof(Element));
  static constexpr bool has_scales  = sizeof(Element) == 1;               // of queries' heads and of keys
  static constexpr int  panel_bytes = row_bytes < 128 ? row_bytes : 128;  // what a swizzle spans
  static constexpr int  panels      = row_bytes / panel_bytes;
  static constexpr int  steps       = row_bytes / 32;  // of wgmma's k

  // A wgmma multiplies 64 keys by 256 heads: 256 halves what the tensor cores read of the keys against 128, and a full accumulator is all
  // that a warpgroup's registers hold.
  static constexpr int keys          = tile_keys;
  static constexpr int columns       = 256;
  static constexpr int group_queries = columns / heads;  // of a warpgroup
  static constexpr int queries       = 2 * group_queries;

  static constexpr int query_bytes = columns * row_bytes;  // of a warpgroup
  static constexpr int key_bytes   = keys * row_bytes;

  static constexpr int bins = 256;  // of a row's histogram of scores, the last one always empty

  // At an item's end each math warp sorts a row in 16 KiB, where the queries were.
  static constexpr int list_bytes   = math_warps * 16384;
  static constexpr int front_bytes  = list_bytes > 2 * query_bytes ? list_bytes : 2 * query_bytes;
  static constexpr int group_offset = front_bytes / 2;  // a warpgroup's queries and lists never meet the other's
  static constexpr int bin_bytes    = queries * bins * 4;
  static constexpr int state_bytes  = (heads == 64 ? 1408 : 2176) + (has_scales ? 9 * keys * 4 : 0);

  static constexpr int budget = (largest_scratch(team_warps) - scratch_alignment) / 128 * 128;
  static constexpr int room   = (budget - front_bytes - bin_bytes - state_bytes) / key_bytes;
  static constexpr int stages = room < 10 ? room : 10;  // key tiles in flight
  static_assert(stages >= 4);

  static constexpr int keys_offset   = front_bytes;
  static constexpr int bins_offset   = keys_offset + stages * key_bytes;
  static constexpr int state_offset  = bins_offset + bin_bytes;
  static constexpr int scratch_bytes = state_offset + state_bytes;
  static_assert(scratch_bytes <= budget);
};

/// A work item: a tile of queries against a stretch of keys.
template <int Queries>
struct WorkItem {
  std::int32_t batch;  // -1: there is no more work
  std::int32_t row;    // of the first query
  std::int32_t split;
  std::int32_t key;  // row of the first key tile
  std::int32_t key_tiles;
  std::int32_t period, stride;  // the order of the key tiles
  bool         shared;          // both warpgroups have the first one's queries, and take turns at the key tiles
  RowKeys      rows[Queries];

  /// The first of a warpgroup's rows.
  __device__ int first_row(int group) const { return shared ? 0 : group * (Queries / 2); }
};

/// The key tiles of an item in an order that jumps through them by golden sections: whatever trend the scores have along the keys, the
/// tiles seen so far are a fair sample of all, and a row's threshold rises as fast as on shuffled keys.  The period is the number of tiles
/// rounded up to three binary digits, so that neighbouring items, which share the keys' copies in the second-level cache, go together.
struct KeyTileOrder {
  std::int32_t tiles, period, stride, at = 0;

  __device__ KeyTileOrder(std::int32_t key_tiles, std::int32_t the_period, std::int32_t the_stride)
      : tiles(key_tiles), period(the_period), stride(the_stride) {}
  __device__ void next() {
    do {
      at += stride;
      if (at >= period) at -= period;
    } while (at >= tiles);
  }
  __device__ static std::int32_t period_of(std::int32_t tiles) {
    const int digits = 32 - __clz(tiles), drop = digits > 3 ? digits - 3 : 0;
    return (tiles + (1 << drop) - 1) >> drop << drop;
  }
  /// The first number from the golden section up that has no divisor in common with the period; a warp tries 32 at a time.
  __device__ static std::int32_t stride_of(std::int32_t period, int lane) {
    const auto golden = static_cast<std::int32_t>(0.6180339887f * static_cast<float>(period));
    for (std::int32_t first = golden > 1 ? golden : 1;; first += 32) {
      std::int32_t a = period, b = first + lane;
      while (b != 0) {
        const std::int32_t rest = a % b;
        a                       = b;
        b                       = rest;
      }
      const unsigned coprime = __ballot_sync(0xffffffffu, a == 1);
      if (coprime != 0) return (first + __ffs(static_cast<int>(coprime)) - 1) % (period > 1 ? period : 2);
    }
  }
};

/// Bins 0 ... 254 of a row's scores, linear between the least score seen at first and half as far again above the greatest: they suit
/// whatever scale and place the scores have.  A bin number never falls as the score rises, which is all that correctness needs.
struct ScoreBins {
  float low, scale;

  __device__ int operator()(float score) const {
    // The intrinsics are not fused with what made the score: a score must fall into one bin wherever it is asked for.
    const int bin = __float2int_rz(__fmul_rn(__fsub_rn(score, low), scale));  // NaN goes to bin 0
    return max(0, min(bin, 254));
  }
  /// A score a little below a bin's lower end, surely in a lower bin; NaN if rounding leaves none there.
  __device__ float edge(int bin) const {
    const float score = low + (static_cast<float>(bin) - 0.0625f) / scale;
    return bin >= 1 && (*this)(score) < bin ? score : __int_as_float(0x7fffffff);
  }
};

/// A score s with s <= score is surely not among the row's k best; NaN: no such score is known.  Whoever finds a higher one puts it in
/// place of the one that it started from: the epoch, another one whenever the row's bins start anew, lets what was found in old bins fail.
struct alignas(8) RejectedScore {
  float        score;
  std::int32_t epoch;  // -1: the bins are not to be read
};
static_assert(sizeof(RejectedScore) == sizeof(std::uint64_t));

/// What a row's scores are held against.
struct RowFilter {
  ScoreBins window;  // scale 0: not placed
  // Of the k-th best candidate when the buffer was last cut: of equal scores a later column loses.  NaN: it never was.
  float         tie_score;
  std::int32_t  tie_column;
  std::int32_t  first_key, begin;  // rows of the key tensor: of column 0, of the first legal key
  std::uint32_t legal;             // keys
};

/// What the math warps of a group share of a row.
struct alignas(16) RowState {
  RowFilter    filter;
  std::int32_t count;  // candidates in the row's buffer, each counted in the row's bins
};

template <class Tile>
struct SharedState {
  std::uint64_t           keys_full[Tile::stages], keys_empty[Tile::stages];
  std::uint64_t           queries_full[2], queries_empty[2];
  std::uint64_t           item_full[2], scales_know[2];
  RejectedScore           rejected[Tile::queries];
  float2                  extents[Tile::queries][4];  // of a row's first scores, seen by each warp
  RowState                rows[Tile::queries];
  WorkItem<Tile::queries> items[2];
  std::uint32_t           full[2][2];                                            // rows of a group, a bit each, whose buffers are to be cut
  std::int32_t            stage_key[Tile::stages];                               // row of the stage's first key
  float2       key_scales[Tile::has_scales ? Tile::stages : 1][Tile::keys / 2];  // of keys 16 w + r and 8 further in place 8 w + r
  std::int32_t math_warps_left;
};

}  // namespace Tributary::Impl::SM90
