#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "Tributary_Attention.hpp"
#include "common/segment.hpp"

namespace Tributary::Impl {

/// Rotary embedding as kernels see it.
struct RotaryProblem {
  std::int32_t        dims = 0, first = 0;  // components first ... first + dims - 1 turn
  bool                interleaved = false;
  double              base        = 1;
  const float *       cosine = nullptr, *sine = nullptr;  // null: the formula
  std::int64_t        cosine_stride = 0, sine_stride = 0, positions = 0;
  const std::int32_t *query_positions = nullptr, *key_positions = nullptr;  // null: i' and j
  std::int64_t        query_position_stride = 0, key_position_stride = 0;   // of the batch
};

/// Scales of blocks of a tensor's rows; none where the element type has none.
struct BlockScales {
  const float* data = nullptr;
  std::int64_t strides[2]{};  // batch, head

  KOKKOS_INLINE_FUNCTION const float* of_head(std::int64_t batch, std::int64_t head) const {
    return data + batch * strides[0] + head * strides[1];
  }
  /// Of a row, which counts from the tensor's first.
  KOKKOS_INLINE_FUNCTION float of(std::int64_t batch, std::int64_t row, std::int64_t head) const {
    return of_head(batch, head)[row / attention_scale_rows];
  }
};

/// Attention's inputs as kernels and reference see them: checked, defaults filled in.
struct AttentionProblem {
  ElementType  type;
  std::int64_t batch, queries, keys;  // rows of the tensors
  std::int32_t heads, key_heads, head_dim, value_dim;
  const void * query, *key, *value;
  std::int64_t query_strides[3], key_strides[3], value_strides[3];  // batch, row, head
  BlockScales  query_scale, key_scale, value_scale;

  float        scale, softcap;  // softcap 0: none
  std::int64_t left, right;     // i' - left <= j <= i' + right; -1: no limit; causal is folded in

  const std::uint8_t *key_keep, *keep;  // null: not given
  const float*        additive_mask;
  std::int64_t        key_keep_stride;                            // of the batch
  std::int64_t        keep_strides[3], additive_mask_strides[3];  // batch, head, row; 0 where broadcast
  std::int64_t        keep_columns, additive_mask_columns;

  const float *alibi_slopes, *relative_bias, *sink;
  std::int64_t alibi_stride;  // of the batch
  std::int64_t relative_bias_stride;
  std::int32_t buckets, max_distance;
  bool         bidirectional;

  bool          has_dropout;
  std::uint32_t dropout_threshold;  // a word below it drops
  std::uint32_t dropout_offset;
  std::uint64_t dropout_seed;
  float         dropout_scale;  // 1/(1 - probability), 0 for probability 1

  PackedOffsets packed;

  bool deterministic;  // whether the gradients of queries are to be added up in one order

  bool         aligned_at_end;            // no query_offset: i' = i + keys - queries
  std::int64_t query_offset, key_offset;  // numbers of the first query and key in the whole sequences, else 0

  /// What is added to a query's number within its segment's sequence to give its position, counted from the first key that is here.
  KOKKOS_INLINE_FUNCTION std::int64_t alignment(const Segment& s) const {
    return aligned_at_end ? s.keys - s.queries : query_offset - key_offset;
  }

  KOKKOS_INLINE_FUNCTION std::int32_t key_head(std::int32_t head) const { return head / (heads / key_heads); }

  /// The keys inside the window of the query at position i', counted from the first of `segment_keys` keys; masks may hide more.
  KOKKOS_INLINE_FUNCTION KeyInterval window(std::int64_t position, std::int64_t segment_keys) const {
    const std::int64_t begin = left < 0 || position - left < 0 ? 0 : position - left;
    const std::int64_t end   = right < 0 || position + right + 1 > segment_keys ? segment_keys : position + right + 1;
    return begin < end ? KeyInterval{begin, end} : KeyInterval{0, 0};
  }
  /// The keys that queries at positions first ... last see together.
  KOKKOS_INLINE_FUNCTION KeyInterval window_of(std::int64_t first, std::int64_t last, std::int64_t segment_keys) const {
    const std::int64_t begin = left < 0 ? 0 : clip(first - left, 0, segment_keys);
    const std::int64_t end   = right < 0 ? segment_keys : clip(last + right + 1, 0, segment_keys);
    return begin < end ? KeyInterval{begin, end} : KeyInterval{0, 0};
  }
  /// The queries, by number, whose window holds a key between first and last.
  KOKKOS_INLINE_FUNCTION KeyInterval queries_of(std::int64_t first, std::int64_t last, const Segment& segment) const {
    const std::int64_t offset = alignment(segment);
    const std::int64_t begin  = right < 0 ? 0 : clip(first - right - offset, 0, segment.queries);
    const std::int64_t end    = left < 0 ? segment.queries : clip(last + left - offset + 1, 0, segment.queries);
    return begin < end ? KeyInterval{begin, end} : KeyInterval{0, 0};
  }
};

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3).
struct PhiloxBlock {
  std::uint32_t word[4];

  /// Word n % 4, by choice: an index would put the words into a GPU's local memory.
  KOKKOS_INLINE_FUNCTION std::uint32_t of(std::int64_t n) const {
    const std::uint32_t low = n % 2 == 0 ? word[0] : word[1], high = n % 2 == 0 ? word[2] : word[3];
    return n % 4 < 2 ? low : high;
  }
};

KOKKOS_INLINE_FUNCTION PhiloxBlock philox(std::uint64_t key, std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3) {
  auto k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0, p1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<std::uint32_t>(p1);
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<std::uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Of both directions.
constexpr std::int32_t most_relative_buckets = 1024;

/// The smallest distance of each bucket of one direction, T5's rule, tabulated on the host for every level: bucket b holds distances
/// first_distances[b] ... first_distances[b+1] - 1, the last one all beyond.  The first half of them are single distances from 0 on.
std::vector<std::int32_t> bucket_first_distances(std::int32_t buckets_of_direction, std::int32_t max_distance);

/// Checks of the public operators; the problem they describe.
std::pair<AttentionProblem, RotaryProblem> check_attention(std::string_view function, const AttentionArguments&,
                                                           std::initializer_list<std::pair<std::string_view, Footprint>> outputs);
std::pair<AttentionProblem, RotaryProblem> check_attention_forward(const AttentionForwardArguments&);
std::pair<AttentionProblem, RotaryProblem> check_attention_backward(const AttentionBackwardArguments&);
void                                       check_attention_merge(const AttentionMergeArguments&);

// The reference level.
void reference_attention_forward(const AttentionProblem&, const RotaryProblem&, const AttentionForwardArguments&);
void reference_attention_backward(const AttentionProblem&, const RotaryProblem&, const AttentionBackwardArguments&);
void reference_attention_merge(const AttentionMergeArguments&);

}  // namespace Tributary::Impl
