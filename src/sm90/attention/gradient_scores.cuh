#pragma once
#include "sm90/attention/dropout.cuh"
#include "sm90/attention/gradient_tile.cuh"

// From products to the gradients of scores, for a warpgroup's 64 keys (rows) and a step's queries (columns).  A thread has two rows,
// lane / 4 and 8 further, and the columns 8 n + 2 (lane % 4) + {0, 1}: in elements [4 n + {0, 1}] and [4 n + {2, 3}].

namespace Tributary::Impl::SM90 {

template <class Tile>
class GradientScores {
 public:
  static constexpr int count = Tile::queries / 2;  // elements of a thread

  /// \param warp_row  of the piece, the warp's first key
  __device__ GradientScores(const AttentionBackwardCall& call, const GradientPiece& piece, int warp_row, int lane)
      : call_(call), piece_(piece), warp_row_(warp_row), row_(warp_row + lane / 4), column_(2 * (lane % 4)) {}

  /// Products of keys and queries become the weights e^(score - lse).  lse: of the columns, times log2(e) where scores are plain.
  __device__ void weigh(float (&scores)[count], const GradientStep<Tile>& step, const float* lse) {
    if constexpr (plain) {
      hide(scores, step);
      const float factor = call_.problem.scale * log2_e;
      for_each_pair(lse, [&](int i, float of_column) { scores[i] = exp2_approx(fmaf(scores[i], factor, -of_column)); });
    } else {
      bias(scores, step);
      for_each_pair(lse, [&](int i, float of_column) { scores[i] = exp2_approx((scores[i] - of_column) * log2_e); });
    }
  }

  /// Weights P and products dP of values and gradients of outputs become what the gradient of values takes (P times the sink's share, 0
  /// where dropped; value_factor() is left for the end, since a half might not hold it) and the gradients of products, P (f dP - shift)
  /// with the soft cap's slope, where f is the share and dropout's factor.
  __device__ void differentiate(float (&weights)[count], float (&gradients)[count], const GradientStep<Tile>& step, const float* shift,
                                const float* share) {
    if constexpr (plain) {
      for_each_pair(shift, [&](int i, float of_column) { gradients[i] = weights[i] * (gradients[i] - of_column); });
    } else {
      const std::uint32_t kept = kept_elements(step);
      for_each_pair(shift, share, [&](int i, float of_column, float share_of_column) {
        const float factor = is_kept(kept, i) ? share_of_column : 0.0f;
        gradients[i]       = weights[i] * (gradients[i] * (factor * value_factor()) - of_column);
        weights[i] *= factor;
      });
      if (call_.problem.softcap > 0.0f) {
#pragma unroll
        for (int i = 0; i < count; ++i) gradients[i] *= slopes_[i];
      }
    }
  }

  /// The same in two halves, where other threads hold the products dP.  The weights' owners: what the gradient of values takes, and what
  /// the gradients of scores take, the weights with the soft cap's slope.
  __device__ void split(float (&weights)[count], float (&of_slopes)[count], const GradientStep<Tile>& step, const float* share) {
#pragma unroll
    for (int i = 0; i < count; ++i) of_slopes[i] = call_.problem.softcap > 0.0f ? weights[i] * slopes_[i] : weights[i];
    const std::uint32_t kept = kept_elements(step);
    for_each_pair(share, [&](int i, float share_of_column) { weights[i] *= is_kept(kept, i) ? share_of_column : 0.0f; });
  }

  /// The owners of the products: `weights(i)` with the slope become gradients of products in `gradients`.
  template <class Weights>
  __device__ void differentiate(float (&gradients)[count], const Weights& weights, const GradientStep<Tile>& step, const float* shift,
                                const float* share) const {
    if constexpr (plain) {
      for_each_pair(shift, [&](int i, float of_column) { gradients[i] = weights(i) * (gradients[i] - of_column); });
    } else {
      const std::uint32_t kept = kept_elements(step);
      for_each_pair(shift, share, [&](int i, float of_column, float share_of_column) {
        const float factor = is_kept(kept, i) ? share_of_column : 0.0f;
        gradients[i]       = weights(i) * (gradients[i] * (factor * value_factor()) - of_column);
      });
    }
  }

  __device__ float        value_factor() const { return value_factor(call_.problem); }
  __device__ static float value_factor(const AttentionProblem& p) { return !plain && p.has_dropout ? p.dropout_scale : 1.0f; }

 private:
  static constexpr bool  plain    = Tile::scores == Scores::plain;
  static constexpr float infinity = __builtin_huge_valf(), largest = 3.402823466e38f;

  /// function(i, the column's number) for all elements; the numbers of two neighbouring columns come with one load.
  template <class Function>
  __device__ void for_each_pair(const float* of_columns, const Function& function) const {
#pragma unroll
    for (int n = 0; n < count / 4; ++n) {
      const float2 pair = *reinterpret_cast<const float2*>(of_columns + 8 * n + column_);
#pragma unroll
      for (int i = 0; i < 4; ++i) function(4 * n + i, i % 2 == 0 ? pair.x : pair.y);
    }
  }

  /// function(i, the column's number, its second one).
  template <class Function>
  __device__ void for_each_pair(const float* first, const float* second, const Function& function) const {
#pragma unroll
    for (int n = 0; n < count / 4; ++n) {
      const float2 one = *reinterpret_cast<const float2*>(first + 8 * n + column_),
                   two = *reinterpret_cast<const float2*>(second + 8 * n + column_);
#pragma unroll
      for (int i = 0; i < 4; ++i) function(4 * n + i, i % 2 == 0 ? one.x : one.y, i % 2 == 0 ? two.x : two.y);
    }
  }

  /// function(element, r, column), as straight-line code.
  template <class Function>
  __device__ void for_each(float (&elements)[count], const Function& function) const {
#pragma unroll
    for (int i = 0; i < count; ++i) function(elements[i], i / 2 % 2, i / 4 * 8 + i % 2 + column_);
  }

  /// Pairs outside the window, and rows that are none, get -infinity.
  __device__ void hide(float (&scores)[count], const GradientStep<Tile>& step) const {
    // Of the warp's 16 keys and all queries: i' - j, from the least to the greatest.
    const std::int32_t position = step.position(piece_), left = piece_.left, right = piece_.right;
    const std::int32_t least = position - (piece_.first_key + warp_row_ + 15),
                       most  = position + Tile::queries - 1 - (piece_.first_key + warp_row_);
    if (warp_row_ + 16 <= piece_.keys && (left < 0 || most <= left) && (right < 0 || least >= -right)) return;
    std::int32_t begin[2], end[2];  // columns that see a row
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      begin[r] = right < 0 ? 0 : key_of(r) - right - position;
      end[r]   = left < 0 ? Tile::queries : key_of(r) + left - position + 1;
      if (row_ + 8 * r >= piece_.keys) end[r] = 0;
    }
    for_each(scores, [&](float& x, int r, int column) {
      if (column < begin[r] || column >= end[r]) x = -infinity;
    });
  }

  /// The formula of PairScores (attention_tile.hpp), an option at a time.  Rows and columns that do not exist read the last one's options.
  __device__ void bias(float (&scores)[count], const GradientStep<Tile>& step) {
    const AttentionProblem& p = call_.problem;
    for_each(scores, [&](float& x, int, int) { x *= p.scale; });
    if (p.softcap > 0.0f) {
      const float inverse = fminf(1.0f / p.softcap, largest);
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const float t = tanh_approx(scores[i] * inverse);
        scores[i]     = p.softcap * t;
        slopes_[i]    = 1.0f - t * t;
      }
    }
    const auto first_distance = step.position(piece_) - piece_.first_key - row_;  // i' - j of the first row and column
    if (p.alibi_slopes != nullptr) {
      const float slope = p.alibi_slopes[piece_.sequence * p.alibi_stride + step.head];
      for_each(scores, [&](float& x, int r, int column) { x -= slope * static_cast<float>(abs(first_distance + column - 8 * r)); });
    }
    if (p.relative_bias != nullptr)
      for_each(scores, [&](float& x, int r, int column) {
        const std::int32_t relative = 8 * r - first_distance - column;
        const std::int32_t bucket   = call_.buckets.bucket[max(-p.max_distance, min(relative, p.max_distance)) + p.max_distance];
        x += p.relative_bias[bucket * p.relative_bias_stride + step.head];
      });
    if (p.additive_mask != nullptr)
      with_option(scores, step, p.additive_mask, p.additive_mask_strides, p.additive_mask_columns, 0.0f,
                  [](float& x, float of_pair) { x += of_pair; });
    // An infinite bias would make infinity - infinity of the maximum.
    for_each(scores, [&](float& x, int, int) { x = x > largest ? largest : x; });
    if (p.keep != nullptr)
      with_option(scores, step, p.keep, p.keep_strides, p.keep_columns, std::uint8_t{0}, [](float& x, std::uint8_t keep) {
        if (keep == 0) x = -infinity;
      });
    if (p.key_keep != nullptr) {
      bool kept[2];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        kept[r] = row_ + 8 * r < piece_.keys && p.key_keep[piece_.batch * p.key_keep_stride + piece_.key_row + row_ + 8 * r] != 0;
      for_each(scores, [&](float& x, int r, int) {
        if (!kept[r]) x = -infinity;
      });
    }
    hide(scores, step);
  }

  /// function(score, option of its pair), `beyond` where the option has no such key.  Many are loaded before the first is used: loads
  /// behind branches would wait for one another.
  template <class Option, class Function>
  __device__ void with_option(float (&scores)[count], const GradientStep<Tile>& step, const Option* option,
                              const std::int64_t (&strides)[3], std::int64_t keys, Option beyond, const Function& function) const {
    const Option* const of_keys = option + piece_.batch * strides[0] + step.head * strides[1] + key_of(0);
    const bool          inside  = piece_.first_key + warp_row_ + 16 <= keys;
    constexpr int       at_once = 16;
#pragma unroll
    for (int first = 0; first < count; first += at_once) {
      Option     of_pairs[at_once];
      const auto load = [&](const auto& is_key) {
#pragma unroll
        for (int i = 0; i < at_once; i += 4)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const Option* const of_query = of_keys + query_row(step, (first + i) / 4 * 8 + c + column_) * strides[2];
#pragma unroll
            for (int r = 0; r < 2; ++r) of_pairs[i + 2 * r + c] = is_key(r) ? of_query[8 * r] : beyond;
          }
      };
      if (inside)
        load([](int) { return true; });
      else
        load([&](int r) { return key_of(r) < keys; });
#pragma unroll
      for (int i = 0; i < at_once; ++i) function(scores[first + i], of_pairs[i]);
    }
  }

  /// A bit for each element: whether dropout keeps it.  Eight threads have the same columns and share the warp's sixteen keys: each looks
  /// these up for an eighth of the columns.
  __device__ std::uint32_t kept_elements(const GradientStep<Tile>& step) const {
    constexpr int columns = count / 2, own = columns / 8;
    static_assert(count <= 32 && own * 8 == columns && own <= 2);
    const AttentionProblem& p = call_.problem;
    if (!p.has_dropout) return ~0u;
    const int          among     = row_ - warp_row_;
    const std::int64_t first_key = p.key_offset + piece_.first_key + warp_row_;
    std::uint32_t      looked_up = 0, kept = 0;  // looked_up: sixteen bits of each column
#pragma unroll
    for (int i = 0; i < own; ++i) {
      const int m = among * own + i, column = m / 2 * 8 + m % 2 + column_;
      looked_up |= kept_pairs(p, piece_.sequence, step.head, p.query_offset + step.first_query() + column, first_key) << 16 * i;
    }
#pragma unroll
    for (int other = 0; other < 8; ++other) {
      const std::uint32_t pairs = __shfl_sync(0xffffffffu, looked_up, 4 * other + column_ / 2) >> among;
#pragma unroll
      for (int i = 0; i < own; ++i) {
        const int m = other * own + i;
#pragma unroll
        for (int r = 0; r < 2; ++r) kept |= (pairs >> (16 * i + 8 * r) & 1u) << (m / 2 * 4 + 2 * r + m % 2);
      }
    }
    return kept;
  }
  __device__ static bool is_kept(std::uint32_t kept, int i) { return (kept >> i & 1u) != 0; }

  /// The key's number in its sequence.
  __device__ std::int32_t key_of(int r) const { return piece_.first_key + row_ + 8 * r; }
  __device__ std::int64_t query_row(const GradientStep<Tile>& step, int column) const {
    return piece_.query_row + min(step.first_query() + column, piece_.sequence_queries - 1);
  }

  const AttentionBackwardCall& call_;
  const GradientPiece&         piece_;
  const int                    warp_row_, row_, column_;  // row_: this thread's first row
  float                        slopes_[plain ? 1 : count];
};

}  // namespace Tributary::Impl::SM90
