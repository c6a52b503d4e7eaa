#pragma once
#include "sm90/indexer/decode_load.cuh"
#include "sm90/indexer/relu.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/wgmma.cuh"

// The math warps' arithmetic: a tile of 64 keys times `Columns` query heads in registers, then relu, weight and sum over heads.  Layout,
// order of sums and so bits are those of score.cuh; the number of heads, 32 or 64, is not known when this is compiled.

namespace Tributary::Impl::SM90 {

template <class Row, int Columns>
struct DecodeScoring {
  using Element               = typename Row::Element;
  static constexpr int halves = Columns / 32;  // sums over 32 heads

  using Accumulator = float[Columns / 2];
  using Sums        = float[2][halves];  // this thread's part, for its two keys; with 64 heads every second one is a whole sum

  const float4 (&weights)[128 / 16][4];
  const bool heads64;

  /// Zero for rows past the last.  A thread brings two; a barrier of the warpgroup comes before they are used.
  __device__ static void share_weights(float4 (&to)[128 / 16][4], const IndexerProblem& problem, std::int64_t batch, std::int64_t first_row,
                                       int thread) {
    const int block = thread / 4, lane = thread % 4, column = block * 8 + lane * 2, head = column % problem.heads;
    if (column >= Columns) return;
    const std::int64_t row  = first_row + column / problem.heads;
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
    }
    reinterpret_cast<float2*>(&to[block / 2][lane])[block % 2] = pair;
  }

  /// accumulator = keys of a stage x queries; issued, not waited for.
  __device__ static void multiply(Accumulator& accumulator, std::uint64_t key, std::uint64_t query) {
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Row::steps; ++step) {
      constexpr int per_panel = Row::panel_bytes / 32;
      const int     panel = step / per_panel, in_panel = step % per_panel;  // addresses in units of 16 bytes
      ptx::Wgmma<Element, Columns>::issue(accumulator, key + panel * (decode::keys * Row::panel_bytes / 16) + in_panel * 2,
                                          query + panel * (Columns * Row::panel_bytes / 16) + in_panel * 2, step != 0);
    }
    ptx::wgmma_commit_group();
  }

  __device__ void sum_heads(const Accumulator& accumulator, Sums& sum, int lane) const {
    static_assert(halves % 2 == 0);
#pragma unroll
    for (int parity = 0; parity < 2; ++parity) {
#pragma unroll
      for (int half = parity; half < halves; half += 2)
#pragma unroll
        for (int key = 0; key < 2; ++key) sum[key][half] = parity == 1 && heads64 ? sum[key][half - 1] : 0.0f;
#pragma unroll
      for (int pair = 0; pair < 2; ++pair)  // of blocks of 8 columns
#pragma unroll
        for (int half = parity; half < halves; half += 2) {
          const int    block = half * 4 + pair * 2;
          const float4 of    = weights[block / 2][lane % 4];
#pragma unroll
          for (int key = 0; key < 2; ++key) {
            const float* const x = accumulator + block * 4 + key * 2;
            sum[key][half]       = add_weighted(sum[key][half], x, of.x, of.y);
            sum[key][half]       = add_weighted(sum[key][half], x + 4, of.z, of.w);
          }
        }
    }
  }

  /// Adds up the sums of four neighbouring lanes and calls function(which of the two keys, score) for those that are this lane's: of the
  /// query lane % (queries of the warpgroup).
  template <class Function>
  __device__ void for_each_score(const Sums& sum, int lane, const Function& function) const {
    const bool bit0 = (lane & 1) != 0, bit1 = (lane & 2) != 0;
    const auto add = [](float own, int distance) { return own + __shfl_xor_sync(0xffffffffu, own, distance); };
    // Scores of `rows` queries, at[0], at[step], ... of a key's sums; a lane has one of four, or one of two of one key, or one.
    const auto reduce = [&](auto rows_tag, auto step_tag) {
      constexpr int rows = decltype(rows_tag)::value, step = decltype(step_tag)::value, from = step - 1;
      if constexpr (rows == 1) {
        const float first = add(add(sum[0][from], 1), 2), second = add(add(sum[1][from], 1), 2);
        if (!bit1) function(lane & 1, bit0 ? second : first);
      } else if constexpr (rows == 2) {
        const float first  = add(trade(bit0, sum[0][from], sum[0][from + step], 1), 2);
        const float second = add(trade(bit0, sum[1][from], sum[1][from + step], 1), 2);
        function((lane >> 1) & 1, bit1 ? second : first);
      } else {
        static_assert(rows == 4);
#pragma unroll
        for (int key = 0; key < 2; ++key) {
          const float* const s = sum[key] + from;
          function(key, trade(bit1, trade(bit0, s[0], s[step], 1), trade(bit0, s[2 * step], s[3 * step], 1), 2));
        }
      }
    };
    using std::integral_constant;
    if (heads64)
      reduce(integral_constant<int, halves / 2>{}, integral_constant<int, 2>{});
    else
      reduce(integral_constant<int, halves>{}, integral_constant<int, 1>{});
  }
};

}  // namespace Tributary::Impl::SM90
