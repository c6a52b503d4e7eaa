#pragma once
#include <cstdint>

#include "sm90/indexer/decode.hpp"
#include "sm90/indexer/rows.cuh"
#include "sm90/launch.cuh"
#include "topk/entry.hpp"

// Sizes of the kernel for few queries, and what its warps share.

namespace Tributary::Impl::SM90 {

namespace decode {

// Warps of a team: two warpgroups multiply, of a third one two warps load, one counts, one ends at once.
constexpr int math_warps = 8, math_threads = 32 * math_warps, team_warps = 12, team_threads = 32 * team_warps;
constexpr int load_warp = 8, load_threads = 64, count_warp = 10;
constexpr int math_registers = 224, other_registers = 56;  // 2 x 224 + 56 = 3 x 168

constexpr int keys        = 64;   // of a tile: wgmma's M
constexpr int panel_bytes = 128;  // of a row of keys or queries; rows of 64 bytes fill half
constexpr int most_rows   = 16;
constexpr int most_stages = 16;
constexpr int bins        = 512;

}  // namespace decode

/// Where a team's scratch has what, in bytes; it follows from the plan.
struct DecodeScratch {
  std::int32_t stages;  // key tiles in flight
  std::int32_t keys, scores, histogram, state, end;
  std::int32_t score_row;  // floats of a row of the part's scores; 0: they do not fit and are read from the workspace
};

/// One launch of the kernel.
struct DecodeCall {
  IndexerProblem problem;
  DecodePlan     plan;
  DecodeScratch  scratch;
  TopkOutput     output;
};

/// What became of the team that is to select a row.
enum class Owner : std::uint32_t { waiting = 0, gone = 1, bound = 2 };

/// Bins of a row's scores: 128 linear ones between the median of a sample and one of its best, then 32 for every doubling of the distance
/// from the median.  They suit whatever scale and place the scores have; a bin number never falls as the score rises, which is all that
/// correctness needs.
struct DecodeBins {
  float low, scale;  // scale 0: all in one bin

  __device__ int operator()(float score) const {
    // The intrinsics are not fused with what made the score: a score must fall into one bin wherever it is asked for.
    const float at     = __fmul_rn(__fsub_rn(score, low), scale);
    const int   linear = max(0, __float2int_rz(at));
    const int   beyond = min(128 + ((__float_as_int(at) - __float_as_int(128.0f)) >> 18), decode::bins - 1);
    return at >= 128.0f ? beyond : min(linear, 127);  // NaN goes to bin 0
  }
};

/// What the warps of a team share.
struct DecodeState {
  std::uint64_t keys_full[decode::most_stages], keys_empty[decode::most_stages];
  std::uint64_t bins_placed[2];  // by each warpgroup
  std::uint64_t counted;         // the first tiles' scores are in the histogram
  std::uint64_t chosen;          // the rows' least bins are known
  float4        weights[2][256 / 16][4];
  float         key_scales[decode::most_stages][decode::keys];
  RowKeys       rows[decode::most_rows];
  DecodeBins    row_bins[decode::most_rows];
  std::int32_t  least_bin[decode::most_rows];
  std::int32_t  listed[decode::most_rows], place[decode::most_rows];
  float         sample[decode::most_rows][decode::keys];
  std::int32_t  ticket;
};

/// The part of the keys that a team has, as rows of the key tensor.
struct KeyPart {
  std::int32_t hull_begin, hull_end;  // of all legal keys of the tile of queries
  std::int32_t begin, end;
  std::int32_t tiles, counted_tiles;
  std::int32_t batch, tile, split;  // tile: of all batch entries
  std::int32_t first_row;           // query of the batch entry

  /// Every warp works it out for itself.
  __device__ KeyPart(const DecodeCall& call, int team, int lane, RowKeys& own_row) {
    const DecodePlan& plan = call.plan;
    split                  = team % plan.splits;
    tile                   = team / plan.splits;
    batch                  = tile / static_cast<std::int32_t>(plan.tiles);
    first_row              = tile % static_cast<std::int32_t>(plan.tiles) * plan.tile_rows;
    own_row                = RowKeys{0, 0, 0};
    if (lane < plan.tile_rows) own_row = row_keys(call.problem, batch, first_row + lane);
    const bool some = own_row.begin < own_row.end;
    hull_begin      = __reduce_min_sync(0xffffffffu, some ? own_row.begin : 0x7fffffff);
    hull_end        = __reduce_max_sync(0xffffffffu, some ? own_row.end : 0);
    if (hull_begin >= hull_end) hull_begin = hull_end = 0;
    const std::int64_t all = hull_end - hull_begin;
    begin                  = hull_begin + (static_cast<std::int32_t>(all * split / plan.splits) & ~3);
    end   = split + 1 == plan.splits ? hull_end : hull_begin + (static_cast<std::int32_t>(all * (split + 1) / plan.splits) & ~3);
    tiles = (end - begin + decode::keys - 1) / decode::keys;
    // What is counted early must be joined with the other teams' counts while the rest is multiplied.
    const int rest = plan.groups == 1 ? 7 : 8;
    counted_tiles  = tiles <= 1 ? tiles : max(tiles / 2, tiles - rest);
  }

  /// The key that stands for the rest in place `i` of the sample.
  __device__ std::int32_t sample_key(int i) const {
    return hull_begin + static_cast<std::int32_t>(static_cast<std::int64_t>(hull_end - hull_begin) * (2 * i + 1) / (2 * decode::keys));
  }
};

}  // namespace Tributary::Impl::SM90
