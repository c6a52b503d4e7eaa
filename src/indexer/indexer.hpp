#pragma once
#include <cstdint>
#include <string_view>

#include "Tributary_Indexer.hpp"
#include "common/segment.hpp"
#include "topk/entry.hpp"

namespace Tributary::Impl {

/// The indexer's inputs as kernels and reference see them: checked, and bounded whatever the data in index arrays.
struct IndexerProblem {
  ElementType  type;
  std::int64_t batch, queries, keys;  // rows of the tensors
  std::int32_t heads, head_dim;
  const void * query, *key;
  const float *weights, *query_scale, *key_scale;  // scales: null unless float8_e4m3
  std::int64_t query_strides[3], key_strides[2], weight_strides[2], query_scale_strides[2], key_scale_stride;

  std::int32_t        ratio, query_offset;  // ratio 0: not causal
  const std::int32_t *query_offsets, *range;
  std::int64_t        range_strides[2];
  PackedOffsets       packed;

  KOKKOS_INLINE_FUNCTION Segment segment(std::int64_t in_batch, std::int64_t row, std::int64_t end) const {
    return packed.segment(in_batch, row, end, queries, keys);
  }

  /// The legal keys of row segment.row + i.
  KOKKOS_INLINE_FUNCTION KeyInterval legal_keys(const Segment& segment, std::int64_t i) const {
    if (range != nullptr) {
      const std::int32_t* const bounds = range + segment.batch * range_strides[0] + (segment.row + i) * range_strides[1];
      const std::int64_t        begin  = clip(bounds[0], 0, segment.keys);
      return {begin, clip(bounds[1], begin, segment.keys)};
    }
    if (ratio == 0) return {0, segment.keys};
    const std::int64_t offset = query_offsets == nullptr ? query_offset : clip(query_offsets[segment.sequence], 0, 0x7fffffff);
    return {0, clip((offset + segment.first_query + i + 1) / ratio, 0, segment.keys)};
  }
};

/// The check of the inputs; `outputs` are refused where they overlap one.
IndexerProblem check_indexer(std::string_view function, const IndexerArguments&, const IndexerOptions&,
                             std::initializer_list<std::pair<std::string_view, Footprint>> outputs);

IndexerProblem                        check_indexer_score(const IndexerScoreArguments&, const IndexerOptions&);
std::pair<IndexerProblem, TopkOutput> check_indexer_topk(const IndexerTopkArguments&, const IndexerOptions&);

void reference_indexer_score(const IndexerProblem&, const Tensor<float, 3>& scores);
void reference_indexer_topk(const IndexerProblem&, const TopkOutput&);

}  // namespace Tributary::Impl
