#pragma once
#include "sm90/attention/dropout.cuh"
#include "sm90/attention/tensors.cuh"
#include "sm90/attention/tile.cuh"

// The online softmax of a warpgroup's 64 rows.  A thread has two of them, four neighbouring threads share these: products of the keys
// 8 n + 2 (lane % 4) + {0, 1} with row lane / 4 of its warp in scores[4 n + {0, 1}], with row lane / 4 + 8 in scores[4 n + {2, 3}].

namespace Tributary::Impl::SM90 {

template <class Tile>
class RowSoftmax {
 public:
  using Piece                = typename Tile::Piece;
  static constexpr int count = Tile::keys / 2;  // scores of a thread

  /// \param warp_row  of the piece, the warp's first one
  __device__ RowSoftmax(const AttentionForwardCall& call, const Piece& piece, int warp_row, int lane)
      : call_(call), piece_(piece), warp_row_(warp_row), row_(warp_row + lane / 4), lane_(lane), column_(2 * (lane % 4)) {
    factor_ = plain ? call.problem.scale * log2_e : log2_e;
    // A window's ends only rise from row to row: what the warp's first and last row see, all see.
    const std::int32_t last  = min(piece.query_of(warp_row + 15), piece.rows - 1);
    const KeyInterval  early = window(piece.query_of(warp_row)), late = window(last);
    clear_begin_ = static_cast<std::int32_t>(late.begin);
    clear_end_   = late.begin < late.end ? static_cast<std::int32_t>(early.end) : 0;
  }

  /// Products with a tile of the sequence's keys become weights e^(score - shift), not normalised, as their sum is.  Sums of values so far
  /// are to be multiplied with rescale.  No branch for that, so that a row's exponentials go on beside the maximum of the other one.
  ///
  /// \return whether rescale is not 1, for any of the warp's rows; also where a sum of weights is no number, so that a branch on it waits
  /// for all weights
  __device__ bool soften(float (&scores)[count], std::int32_t first_key, float (&rescale)[2]) {
    return soften(scores, first_key, rescale, [] { return 1.0f; });
  }
  /// \param of_tile  e4m3: gives what products with this tile are to be multiplied with; asked once
  template <class Factor>
  __device__ bool soften(float (&scores)[count], std::int32_t first_key, float (&rescale)[2], const Factor& of_tile) {
    if constexpr (plain) hide(scores, first_key);
    const float factor = of_tile();
    if constexpr (!plain) bias(scores, first_key, factor);
    if constexpr (Tile::e4m3 && plain) factor_ = factor;
    float greatest[2], shift[2];
    maxima(scores, greatest);
    bool moved = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      greatest[r] = of_row(greatest[r]);
      // The shift follows the maximum only when weights would pass a bound, so that few tiles need rescaling.
      const bool  moves = exponent(greatest[r], shift_[r]) > headroom;
      const float to = plain ? fmaf(greatest[r], factor_, -lift) : greatest[r] - lift, down = shift_[r] - to;
      rescale[r] = exp2_approx(moves ? (plain ? down : down * factor_) : 0.0f);
      shift_[r]  = moves ? to : shift_[r];
      shift[r]   = this->shift(r);
      sum_[r] *= rescale[r];
      moved = moved || moves;
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int r = i / 2 % 2;
      scores[i]   = exp2_approx(exponent(scores[i], shift[r]));
      sum_[r] += scores[i];
    }
    if constexpr (!plain)
      if (call_.problem.has_dropout) drop(scores, first_key);
    return __any_sync(0xffffffffu, moved || !(sum_[0] + sum_[1] >= 0.0f));
  }

  /// The same with weights packed as the tensor cores take them, and scores left as they are: exponentials begin at once with the shift of
  /// the tiles before, beside the maxima, and are made again where it must follow one.
  __device__ bool soften(float (&scores)[count], std::int32_t first_key, float (&rescale)[2], std::uint32_t (&packed)[count / 2]) {
    static_assert(plain && !Tile::e4m3);
    hide(scores, first_key);
    float sum[2], greatest[2];
    weigh(scores, packed, sum);
    maxima(scores, greatest);
    rescale[0] = rescale[1] = 1.0f;
    const bool again = __any_sync(0xffffffffu, exponent(greatest[0], shift_[0]) > headroom || exponent(greatest[1], shift_[1]) > headroom ||
                                                   !(sum[0] + sum[1] >= 0.0f));
    if (again) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        greatest[r] = of_row(greatest[r]);
        if (exponent(greatest[r], shift_[r]) > headroom) rescale[r] = move(r, greatest[r]);
      }
      weigh(scores, packed, sum);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) sum_[r] += sum[r];
    return again;
  }

  /// After the last tile: what the rows' sums of values are multiplied with.  Writes their LSE.
  __device__ void finish(AttentionRowFactors (&factors)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum_[r] += __shfl_xor_sync(0xffffffffu, sum_[r], 1);
      sum_[r] += __shfl_xor_sync(0xffffffffu, sum_[r], 2);
      factors[r] = {0.0f, 0.0f};
      if (column_ == 0 && exists(r)) {
        const float lse = sum_[r] == 0.0f ? -infinity : (plain ? shift(r) / log2_e : shift(r)) + logf(sum_[r]);
        factors[r]      = finish_row(call_.problem, call_.output, place(r), lse, sum_[r]);
        if (!plain && call_.problem.has_dropout) factors[r].here *= call_.problem.dropout_scale;
      }
      factors[r].here     = __shfl_sync(0xffffffffu, factors[r].here, lane_ & ~3);
      factors[r].previous = __shfl_sync(0xffffffffu, factors[r].previous, lane_ & ~3);
    }
  }

  /// Whether this thread's row r (0, 1) is one of the piece's.
  __device__ bool exists(int r) const { return piece_.has(row_ + 8 * r); }

  __device__ QueryPlace place(int r) const { return piece_.place(row_ + 8 * r); }

 private:
  static constexpr bool  plain    = Tile::scores == Scores::plain;
  static constexpr float infinity = __builtin_huge_valf(), largest = 3.402823466e38f;
  // A row's greatest weight may be 2^8; of e4m3, whose numbers end at 2^8.8 and 2^-9, it is 2^8 and may become 2^8.75.
  static constexpr float headroom = Tile::e4m3 ? 8.75f : 8.0f;
  static constexpr float lift     = Tile::e4m3 ? (plain ? 8.0f : 8.0f / log2_e) : 0.0f;

  /// The keys that a query of the piece may see.
  __device__ KeyInterval window(std::int32_t query) const {
    return call_.problem.window(std::int64_t{piece_.position} + query, piece_.keys);
  }

  // Of this thread's row r.
  __device__ std::int32_t query(int r) const { return piece_.query_of(row_ + 8 * r); }
  __device__ std::int32_t head(int r) const { return piece_.head_of(row_ + 8 * r); }

  /// Calls function(score, r, column) for this thread's scores, as straight-line code.
  template <class Function>
  __device__ void for_each(float (&scores)[count], const Function& function) const {
#pragma unroll
    for (int i = 0; i < count; ++i) function(scores[i], i / 2 % 2, i / 4 * 8 + i % 2 + column_);
  }

  /// Of a weight.
  __device__ float exponent(float score, float shift) const { return plain ? fmaf(score, factor_, -shift) : (score - shift) * factor_; }

  /// What exponents were lowered by; nothing seen yet: 2^(-infinity - 0) = 0.
  __device__ float shift(int r) const { return shift_[r] == -infinity ? 0.0f : shift_[r]; }

  /// The shift follows a maximum; returns what sums so far are to be multiplied with.
  __device__ float move(int r, float greatest) {
    const float to = fmaf(greatest, factor_, -lift), rescale = exp2_approx(shift_[r] - to);
    shift_[r] = to;
    sum_[r] *= rescale;
    return rescale;
  }

  /// Weights and their sums.
  __device__ void weigh(const float (&scores)[count], std::uint32_t (&packed)[count / 2], float (&sum)[2]) const {
    const float shift[2] = {this->shift(0), this->shift(1)};
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const int   r     = i % 2;
      const float first = exp2_approx(exponent(scores[2 * i], shift[r])), second = exp2_approx(exponent(scores[2 * i + 1], shift[r]));
      sum[r] += first;
      sum[r] += second;
      packed[i] = two_of<typename Tile::Element>(first, second);
    }
  }

  /// The greatest among the four threads of a row.
  __device__ static float of_row(float greatest) {
    greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, 1));
    return fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, 2));
  }

  /// The thread's greatest score of each row.
  __device__ static void maxima(const float (&scores)[count], float (&greatest)[2]) {
    constexpr int chains = 2;  // a row
    float         chain[2 * chains];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      float& most = chain[i / 2 % (2 * chains)];
      most        = i < 4 * chains && i % 2 == 0 ? scores[i] : fmaxf(most, scores[i]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) greatest[r] = fmaxf(chain[r], chain[r + 2]);
  }

  /// Whether a tile's keys are in the windows of all of the warp's rows; or of the piece's, which are in shared memory: two registers less.
  __device__ bool is_clear(std::int32_t first_key) const {
    if constexpr (Tile::e4m3)
      return first_key >= piece_.clear_begin && first_key + Tile::keys <= piece_.clear_end;
    else
      return first_key >= clear_begin_ && first_key + Tile::keys <= clear_end_;
  }

  /// Keys outside a row's window get -infinity.
  __device__ void hide(float (&scores)[count], std::int32_t first_key) const {
    if (is_clear(first_key)) return;
    std::int32_t begin[2], end[2];  // columns of the tile
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const KeyInterval in_window = window(query(r));
      begin[r]                    = static_cast<std::int32_t>(clip(in_window.begin - first_key, 0, Tile::keys));
      end[r]                      = static_cast<std::int32_t>(clip(in_window.end - first_key, 0, Tile::keys));
    }
    for_each(scores, [&](float& x, int r, int column) {
      if (column < begin[r] || column >= end[r]) x = -infinity;
    });
  }

  /// The formula of PairScores (attention_tile.hpp), an option at a time.  A row that does not exist reads the last one's options.
  __device__ void bias(float (&scores)[count], std::int32_t first_key, float factor) const {
    const AttentionProblem& p     = call_.problem;
    const float             scale = Tile::e4m3 ? factor : p.scale;
    for_each(scores, [&](float& x, int, int) { x *= scale; });
    if (p.softcap > 0.0f) {
      const float inverse = fminf(1.0f / p.softcap, largest);
      for_each(scores, [&](float& x, int, int) { x = p.softcap * tanh_approx(x * inverse); });
    }
    const std::int32_t first_position[2] = {piece_.position + query(0) - first_key,  // i' - j of the rows and the first column
                                            piece_.position + query(1) - first_key};
    if (p.alibi_slopes != nullptr) {
      const float* const of_sequence = p.alibi_slopes + piece_.sequence * p.alibi_stride;
      const float        slope[2]    = {of_sequence[head(0)], of_sequence[head(1)]};
      for_each(scores, [&](float& x, int r, int column) { x -= slope[r] * static_cast<float>(abs(first_position[r] - column)); });
    }
    if (p.relative_bias != nullptr)
      for_each(scores, [&](float& x, int r, int column) {
        const std::int32_t relative = column - first_position[r];
        const std::int32_t bucket   = call_.buckets.bucket[max(-p.max_distance, min(relative, p.max_distance)) + p.max_distance];
        x += p.relative_bias[bucket * p.relative_bias_stride + head(r)];
      });
    if (p.additive_mask != nullptr) {
      const float* mask[2];
      rows_of(p.additive_mask, p.additive_mask_strides, first_key, mask);
      with_option(scores, mask, first_key, p.additive_mask_columns, 0.0f, [](float& x, float of_pair) { x += of_pair; });
    }
    // An infinite bias would make infinity - infinity of the maximum.
    for_each(scores, [&](float& x, int, int) { x = x > largest ? largest : x; });
    const auto hide_unless = [](float& x, std::uint8_t keep) {
      if (keep == 0) x = -infinity;
    };
    if (p.keep != nullptr) {
      const std::uint8_t* keep[2];
      rows_of(p.keep, p.keep_strides, first_key, keep);
      with_option(scores, keep, first_key, p.keep_columns, std::uint8_t{0}, hide_unless);
    }
    if (p.key_keep != nullptr) {
      const std::uint8_t* const keep    = p.key_keep + piece_.batch * p.key_keep_stride + piece_.first_key + first_key;
      const std::uint8_t* const both[2] = {keep, keep};
      with_option(scores, both, first_key, piece_.keys, std::uint8_t{0}, hide_unless);
    }
    hide(scores, first_key);
  }

  /// Whether a mask has this key's column.  Of e4m3 a packed sequence's first tile may begin before it.
  __device__ static bool is_column(std::int32_t key, std::int64_t columns) { return key < columns && (!Tile::e4m3 || key >= 0); }

  /// Where the options of this thread's two rows begin, for the tile's first key.
  template <class Option>
  __device__ void rows_of(const Option* option, const std::int64_t (&strides)[3], std::int32_t first_key, const Option* (&rows)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      rows[r] = option + piece_.batch * strides[0] + head(r) * strides[1] + (piece_.row + min(query(r), piece_.rows - 1)) * strides[2] +
                first_key;
  }

  /// function(score, option of its pair), `beyond` where the option has no such key.  All are loaded before the first is used: loads behind
  /// branches would wait for one another.
  template <class Option, class Function>
  __device__ void with_option(float (&scores)[count], const Option* const (&rows)[2], std::int32_t first_key, std::int64_t keys,
                              Option beyond, const Function& function) const {
    Option of_pairs[count];
    if ((!Tile::e4m3 || first_key >= 0) && first_key + Tile::keys <= keys) {
#pragma unroll
      for (int i = 0; i < count; ++i) of_pairs[i] = rows[i / 2 % 2][i / 4 * 8 + i % 2 + column_];
    } else {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const int column = i / 4 * 8 + i % 2 + column_;
        of_pairs[i]      = is_column(first_key + column, keys) ? rows[i / 2 % 2][column] : beyond;
      }
    }
#pragma unroll
    for (int i = 0; i < count; ++i) function(scores[i], of_pairs[i]);
  }

  /// Dropped weights become 0.  The others are left for finish() to scale: times 1/(1 - probability) they may pass what a half can hold.
  __device__ void drop(float (&weights)[count], std::int32_t first_key) const {
    static_assert(Tile::keys == 64, "four threads share a row's keys, sixteen each");
    const AttentionProblem& p   = call_.problem;
    std::uint32_t           own = 0;  // sixteen bits of each row
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const QueryPlace i = place(r);
      own |= kept_pairs(p, i.sequence, i.head, p.query_offset + i.query, p.key_offset + first_key + 16 * (lane_ % 4)) << 16 * r;
    }
#pragma unroll
    for (int shared = 0; shared < 4; ++shared) {
      const std::uint32_t kept = __shfl_sync(0xffffffffu, own, (lane_ & ~3) + shared) >> column_;
#pragma unroll
      for (int i = 8 * shared; i < 8 * shared + 8; ++i)
        if ((kept >> (16 * (i / 2 % 2) + 8 * (i / 4 % 2) + i % 2) & 1) == 0) weights[i] = 0.0f;
    }
  }

  const AttentionForwardCall& call_;
  const Piece&                piece_;
  const int                   warp_row_, row_, lane_, column_;  // this thread's first row; the second one is 8 further
  float                       factor_;                          // of an exponent of 2
  std::int32_t                clear_begin_, clear_end_;         // keys between them are in the windows of all of the warp's rows
  float                       shift_[2] = {-infinity, -infinity}, sum_[2] = {0.0f, 0.0f};
};

}  // namespace Tributary::Impl::SM90
