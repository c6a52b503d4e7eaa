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
  using Element                     = typename Tile::Element;
  static constexpr int  queries     = Tile::group_queries;
  static constexpr int  head_blocks = Tile::heads / 8;  // of 8 columns
  static constexpr bool scaled      = sizeof(Element) == 1;

  /// The weights of a warpgroup's 256 columns, in shared memory: in registers they would leave no room for what becomes of scores.  Lanes
  /// with the same columns (lane % 4) read those of two blocks at a time.
  using Weights = float4[Tile::columns / 16][4];
  const Weights& weights;

  /// Zero for rows past the last.  A thread brings two; a barrier of the warpgroup comes before they are used.
  __device__ static void share_weights(Weights& to, const IndexerProblem& problem, std::int64_t batch, std::int64_t first_row, int thread) {
    const int          block = thread / 4, lane = thread % 4, head = block % head_blocks * 8 + lane * 2;
    const std::int64_t row  = first_row + block / head_blocks;
    float2             pair = {0.0f, 0.0f};
    if (row < problem.queries) {
      const float* const from = problem.weights + batch * problem.weight_strides[0] + row * problem.weight_strides[1] + head;
      pair                    = {__ldg(from), __ldg(from + 1)};
      if (problem.query_scale != nullptr) {
        const float* const scale =
            problem.query_scale + batch * problem.query_scale_strides[0] + row * problem.query_scale_strides[1] + head;
        pair.x *= __ldg(scale);
        pair.y *= __ldg(scale + 1);
      }
      if (share_relu<Element>) pair.y *= 0.5f;
    }
    reinterpret_cast<float2*>(&to[block / 2][lane])[block % 2] = pair;
  }

  /// accumulator = keys of a stage x this warpgroup's queries; issued, not waited for.
  __device__ static void multiply(float (&accumulator)[128], std::uint64_t key, std::uint64_t query) {
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::steps; ++step) {
      constexpr int per_panel = Tile::panel_bytes / 32;
      const int     panel = step / per_panel, in_panel = step % per_panel;  // addresses in units of 16 bytes
      ptx::Wgmma<Element, 256>::issue(accumulator, key + panel * (Tile::keys * Tile::panel_bytes / 16) + in_panel * 2,
                                      query + panel * (Tile::columns * Tile::panel_bytes / 16) + in_panel * 2, step != 0);
    }
    ptx::wgmma_commit_group();
  }

  /// This thread's part of the sum over heads, of each query for its two keys.
  __device__ void sum_heads(const float (&accumulator)[128], float (&sum)[2][queries], int lane) const {
#pragma unroll
    for (int q = 0; q < queries; ++q) sum[0][q] = sum[1][q] = 0.0f;
#pragma unroll
    for (int n = 0; n < head_blocks; n += 2)
#pragma unroll
      for (int q = 0; q < queries; ++q) {
        const int    block = q * head_blocks + n;
        const float4 of    = weights[block / 2][lane % 4];
#pragma unroll
        for (int key = 0; key < 2; ++key) {
          const auto add = [&](const float* x, float w0, float w1) { sum[key][q] = add_weighted<Element>(sum[key][q], x, w0, w1); };
          add(accumulator + block * 4 + key * 2, of.x, of.y);
          add(accumulator + block * 4 + 4 + key * 2, of.z, of.w);
        }
      }
  }

  /// The scales of this thread's two keys; 1 where there are none.
  struct KeyScales {
    float of[2] = {1.0f, 1.0f};

    /// \param all  the scales of the batch entry's `keys` keys
    __device__ void load(const float* all, std::int32_t keys, std::int32_t warp_key, int lane) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int32_t key = warp_key + i * 8 + (lane >> 2);
        of[i]                  = key < keys ? __ldg(all + key) : 0.0f;
      }
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
        if constexpr (scaled) score *= scales.of[key];
        scores[q / 4][key] = score;
      }
  }
};

}  // namespace Tributary::Impl::SM90
