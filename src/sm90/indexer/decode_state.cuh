#pragma once
#include <cuda.h>

#include <cstdint>
#include <limits>

#include "sm90/indexer/decode.hpp"
#include "sm90/indexer/rows.cuh"
#include "sm90/launch.cuh"
#include "topk/entry.hpp"

// Sizes of the kernel for few queries, and what its warps share.

namespace Tributary::Impl::SM90 {

namespace decode {

// Warps of a team: four warpgroups multiply; of a fifth one a warp loads and the others count.
constexpr int math_groups = 4, math_warps = 4 * math_groups, math_threads = 32 * math_warps;
constexpr int load_warp = math_warps, first_count_warp = math_warps + 1, count_warps = 3, count_threads = 32 * count_warps;
constexpr int team_warps = math_warps + 4, team_threads = 32 * team_warps;
constexpr int math_registers = 104, other_registers = 64;  // 640 threads start with 96: 4 x 104 + 64 = 5 x 96

constexpr int keys        = decode_tile_keys;  // wgmma's M
constexpr int most_rows   = 16;                // of a tile of queries
constexpr int most_stages = 8;                 // at most 128 KiB on their way to an SM: more would only wait longer, the sample behind them
constexpr int bins        = 512;

// How often a team looks whether the others have come as far, counting and at the end, before it goes on without them: a read of the
// second-level cache each.
constexpr int count_polls = 100, end_polls = 1000;

// Named barriers; 0 is the selection's.
constexpr int scored_barrier = 1, group_barrier = 2;

}  // namespace decode

/// Where a team's scratch has what, in bytes; it follows from the plan.  Queries come first.
struct DecodeScratch {
  std::int32_t stages;     // key tiles that there is room for
  std::int32_t in_flight;  // that have been asked for and have not come, at most
  std::int32_t keys, sample, histogram, state, end;
};

struct DecodeMaps {
  CUtensorMap query, key;
};

/// One launch of the kernel.
struct DecodeCall {
  IndexerProblem problem;
  DecodePlan     plan;
  DecodeScratch  scratch;
  TopkOutput     output;

  __device__ const DecodeMaps& maps() const { return *static_cast<const DecodeMaps*>(plan.maps); }
};

/// Bins of a row's scores: 128 linear ones from one of the low scores of a sample to one of the high ones, then 64 for every doubling of
/// the distance from the low one.  They suit whatever scale and place the scores have; a bin number never falls as the score rises, which
/// is all that correctness needs.
struct DecodeBins {
  static constexpr int linear = 128, of_doubling = 64;

  float low, scale;  // scale 0: all in one bin

  /// A score's distance from `low` in linear bins.  The intrinsics are not fused with what made the score: a score must fall into one bin
  /// wherever it is asked for.
  __device__ float position(float score) const { return __fmul_rn(__fsub_rn(score, low), scale); }
  /// Each bin in so many, a power of 2.
  template <int Fineness>
  __device__ static int bin(float at) {
    constexpr int shift = 23 - log2_of(Fineness * of_doubling), first_beyond = Fineness * linear;
    const int     near = max(0, __float2int_rz(at * static_cast<float>(Fineness)));
    const int     far =
        min(first_beyond + ((__float_as_int(at) - __float_as_int(static_cast<float>(linear))) >> shift), Fineness * decode::bins - 1);
    return at >= static_cast<float>(linear) ? far : min(near, first_beyond - 1);  // NaN goes to bin 0
  }
  /// The least position in a bin, so that a score need not be put in its bin to be compared with it; of bin 0 negative infinity.
  __device__ static float least_position(int bin) {
    if (bin <= linear) return bin == 0 ? -std::numeric_limits<float>::infinity() : static_cast<float>(bin);
    return __int_as_float(__float_as_int(static_cast<float>(linear)) + ((bin - linear) << (23 - log2_of(of_doubling))));
  }

  /// Whether a position is in that bin or a better one; where the bin is 0, NaN is.
  __device__ static bool reaches(float position, float least) { return fmaxf(position, -std::numeric_limits<float>::infinity()) >= least; }

 private:
  static constexpr int log2_of(int power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }
};

/// Four times as fine: to rank a row's candidates.
struct FineBins {
  static constexpr int fineness = 4, count = fineness * decode::bins;

  DecodeBins bins;

  __device__ int operator()(float score) const { return bins.bin<fineness>(bins.position(score)); }
};

/// A key tile in a stage, or the word that there are no more.
struct StagedTile {
  std::int32_t word;

  __device__ static StagedTile end() { return {-1}; }
  __device__ static StagedTile of(std::int32_t number, bool is_counted) { return {number * 2 + (is_counted ? 1 : 0)}; }

  __device__ bool is_end() const { return word < 0; }
  __device__ std::int32_t number() const { return word >> 1; }  // among all key tiles
  __device__ bool         is_counted() const { return word % 2 != 0; }
};

/// Scores of a sample of keys.
using DecodeSample = float[decode::keys];

/// What the warps of a team share.
struct DecodeState {
  std::uint64_t keys_full[decode::most_stages], keys_empty[decode::most_stages];
  std::uint64_t sample_full, queries_full;
  std::uint64_t bins_placed[decode::math_groups];  // by the warpgroups that have the sample
  std::uint64_t counted;                           // what is to be counted of the team's scores is in the histogram
  std::uint64_t chosen;                            // what the rows' candidates must reach is known
  std::uint64_t switched;                          // each math warp lists the candidates of its tiles, or is done with them
  float4        weights[decode::math_groups][128 / 16][4];
  float         key_scales[decode::most_stages][decode::keys];
  RowKeys       rows[decode::most_rows];
  DecodeBins    row_bins[decode::most_rows];
  float         least[decode::most_rows];  // where candidates begin among the bins
  std::int32_t  listed[decode::most_rows];
  StagedTile    stage_tile[decode::most_stages];
  std::int32_t  tiles[most_decode_tiles];  // that the team has had, in their order
  std::int32_t  tile_count, claimed;
  std::int32_t  first_listed[decode::math_warps];  // each math warp lists candidates from the team's so-manyth tile on
  std::int32_t  is_chosen;
  std::int32_t  ticket;
};

/// A team's tile of queries, and the keys that its rows may see.
struct DecodeTile {
  std::int32_t number, split;         // of all batch entries' tiles; of the tile's teams
  std::int32_t batch, first_row;      // query of the batch entry
  std::int32_t hull_begin, hull_end;  // rows of the key tensor
  std::int32_t key_tiles, counted_tiles;

  /// Every warp works it out for itself.
  __device__ DecodeTile(const DecodeCall& call, int team, int lane, RowKeys& own_row) {
    const DecodePlan& plan  = call.plan;
    const auto        tiles = static_cast<std::int32_t>(plan.tiles);
    number                  = team / plan.splits;
    split                   = team - number * plan.splits;
    batch                   = number / tiles;
    first_row               = (number - batch * tiles) * plan.tile_rows;
    own_row                 = RowKeys{0, 0, 0};
    if (lane < plan.tile_rows) own_row = row_keys(call.problem, batch, first_row + lane);
    const bool some = own_row.begin < own_row.end;
    hull_begin      = __reduce_min_sync(0xffffffffu, some ? own_row.begin : 0x7fffffff);
    hull_end        = __reduce_max_sync(0xffffffffu, some ? own_row.end : 0);
    if (hull_begin >= hull_end) hull_begin = hull_end = 0;
    key_tiles     = (hull_end - hull_begin + decode::keys - 1) / decode::keys;
    counted_tiles = (key_tiles * plan.counted_eighths + 7) / 8;
  }

  __device__ int rows(const DecodeCall& call) const { return min(call.plan.tile_rows, static_cast<int>(call.problem.queries) - first_row); }
  __device__ std::int64_t row_number(const DecodeCall& call, int row) const {
    return static_cast<std::int64_t>(number) * call.plan.tile_rows + row;
  }
  /// Of one of the rows that exist: where the scores of its keys go, by their places in the hull.
  __device__ float* scores(const DecodeCall& call, int row) const {
    return call.plan.scores + (batch * call.problem.queries + first_row + row) * call.plan.score_row;
  }
  __device__ std::int32_t first_key(std::int32_t key_tile) const { return hull_begin + key_tile * decode::keys; }

  /// The key that stands for the rest in place `i` of the sample.
  __device__ std::int32_t sample_key(int i) const {
    return hull_begin + static_cast<std::int32_t>(static_cast<std::int64_t>(hull_end - hull_begin) * (2 * i + 1) / (2 * decode::keys));
  }
};

/// Which of the math warpgroups has which queries and tiles: `groups` of columns, and every team's tile for each of them or for every
/// second or fourth one.
struct DecodeRole {
  int columns_group;  // of the tile of queries
  int first, step;    // of the team's tiles; 0 is the sample

  __device__ DecodeRole(int groups, int warpgroup)
      : columns_group(warpgroup % groups), first(warpgroup / groups), step(decode::math_groups / groups) {}
};

}  // namespace Tributary::Impl::SM90
