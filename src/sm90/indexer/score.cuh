#pragma once
#include "sm90/indexer/parameters.cuh"
#include "sm90/indexer/relu.cuh"
#include "sm90/indexer/tile.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/wgmma.cuh"

// The math warps' arithmetic: a tile of 64 keys times 256 query heads in registers, then relu, weight and sum over heads.
//
// A thread of a warpgroup holds columns 8 n + 2 (lane % 4) + {0, 1} of the accumulator, n = 0 ... 31, for two keys: row lane / 4 of the
// warp's 16 and the one 8 below.  Four neighbouring lanes hold all heads of those keys.

namespace Tributary::Impl::SM90 {

template <class Tile>
struct Scoring {
  using Element                    = typename Tile::Element;
  static constexpr int queries     = Tile::group_queries;
  static constexpr int head_blocks = Tile::heads / 8;  // of 8 columns

  float weight[64];

  /// Of this thread's columns; zero for rows past the last.
  __device__ void load_weights(const IndexerProblem& problem, std::int64_t batch, std::int64_t row, int lane) {
#pragma unroll
    for (int q = 0; q < queries; ++q) {
      const bool         real    = row + q < problem.queries;
      const std::int64_t from    = real ? row + q : problem.queries - 1;  // always a row: loads under a condition wait for each other
      const int          first   = (lane & 3) * 2;                        // of heads n * 8 + first + i
      float* const       of      = weight + q * head_blocks * 2;
      const float* const weights = problem.weights + batch * problem.weight_strides[0] + from * problem.weight_strides[1] + first;
#pragma unroll
      for (int n = 0; n < head_blocks; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) of[n * 2 + i] = __ldg(weights + n * 8 + i);
      if constexpr (Tile::has_scales) {
        const float* const scales =
            problem.query_scale + batch * problem.query_scale_strides[0] + from * problem.query_scale_strides[1] + first;
#pragma unroll
        for (int n = 0; n < head_blocks; ++n)
#pragma unroll
          for (int i = 0; i < 2; ++i) of[n * 2 + i] *= __ldg(scales + n * 8 + i);
      }
#pragma unroll
      for (int n = 0; n < head_blocks * 2; ++n) of[n] = real ? of[n] : 0.0f;
    }
  }

  /// accumulator = keys of a stage x this warpgroup's queries; issued, not waited for.
  /// \param key, query  low halves of their descriptors
  __device__ static void multiply(float (&accumulator)[128], std::uint32_t key, std::uint32_t query) {
    constexpr std::uint64_t high = ptx::matrix_descriptor<Tile::panel_bytes>(0) >> 32 << 32;
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::steps; ++step) {
      constexpr int per_panel = Tile::panel_bytes / 32;
      const int     panel = step / per_panel, in_panel = step % per_panel;  // addresses in units of 16 bytes
      ptx::Wgmma<Element, 256>::issue(accumulator, high | (key + panel * (Tile::keys * Tile::panel_bytes / 16) + in_panel * 2),
                                      high | (query + panel * (Tile::columns * Tile::panel_bytes / 16) + in_panel * 2), step != 0);
    }
    ptx::wgmma_commit_group();
  }

  /// This thread's part of the sum over heads, of each query for its two keys.
  __device__ void sum_heads(const float (&accumulator)[128], float (&sum)[2][queries]) const {
#pragma unroll
    for (int q = 0; q < queries; ++q) sum[0][q] = sum[1][q] = 0.0f;
#pragma unroll
    for (int n = 0; n < head_blocks; ++n)
#pragma unroll
      for (int q = 0; q < queries; ++q) {
        const int   block = q * head_blocks + n;
        const float w0 = weight[block * 2], w1 = weight[block * 2 + 1];
#pragma unroll
        for (int key = 0; key < 2; ++key) {
          const float* const x = accumulator + block * 4 + key * 2;
          sum[key][q]          = add_weighted(sum[key][q], x, w0, w1);
        }
      }
  }

  /// The scales of this thread's two keys; 1 where there are none.
  struct KeyScales {
    float of[2] = {1.0f, 1.0f};

    /// \param all  of a stage's keys
    __device__ void read(const float2 (&all)[Tile::keys / 2], int warp_in_group, int lane) {
      const float2 pair = all[warp_in_group * 8 + lane / 4];
      of[0] = pair.x, of[1] = pair.y;
    }
  };

  /// Scores of a lane: of queries lane % 4 and every fourth one, for the two keys of its sums.
  static constexpr int own_rows = queries / 4;
  using Scores                  = float[own_rows][2];

  /// Adds up the sums of four neighbouring lanes.
  __device__ static void add_lanes(const float (&sum)[2][queries], const KeyScales& scales, Scores& scores, int lane) {
    const bool bit0 = (lane & 1) != 0, bit1 = (lane & 2) != 0;
#pragma unroll
    for (int q = 0; q < queries; q += 4)
#pragma unroll
      for (int key = 0; key < 2; ++key) {
        const float(&s)[queries] = sum[key];
        float score              = trade(bit1, trade(bit0, s[q], s[q + 1], 1), trade(bit0, s[q + 2], s[q + 3], 1), 2);
        if constexpr (Tile::has_scales) score *= scales.of[key];
        scores[q / 4][key] = score;
      }
  }
};

}  // namespace Tributary::Impl::SM90
