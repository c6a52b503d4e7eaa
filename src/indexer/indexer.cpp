#include "indexer/indexer.hpp"

#include <limits>

#include "common/check.hpp"
#include "topk/topk.hpp"

namespace Tributary::Impl {

IndexerProblem check_indexer(std::string_view function, const IndexerArguments& in, const IndexerOptions& options,
                             std::initializer_list<std::pair<std::string_view, Footprint>> outputs) {
  const auto [batch, queries, heads, head_dim] = in.query.extents;
  const std::int64_t     keys                  = in.key.extents[1];
  constexpr std::int64_t int32_max             = std::numeric_limits<std::int32_t>::max();

  require(in.key.extents[2] == head_dim, "{}: key has {} columns, query has head dimension {}", function, in.key.extents[2], head_dim);
  require(in.key.extents[0] == batch, "{}: key has batch {}, query has batch {}", function, in.key.extents[0], batch);
  require_extents(function, "weights", in.weights, {batch, queries, heads});
  require(heads >= 1 && heads <= 65536, "{}: query has {} heads, expected 1 ... 65536", function, heads);
  require(head_dim >= 1 && head_dim <= 65536, "{}: the head dimension is {}, expected 1 ... 65536", function, head_dim);
  require(keys <= int32_max, "{}: there are {} keys, more than an int32 index can name", function, keys);

  const bool scaled = in.type == ElementType::float8_e4m3;
  require(!scaled || (in.has_query_scale && in.has_key_scale), "{}: float8_e4m3 inputs need query_scale and key_scale", function);
  require(scaled || (!in.has_query_scale && !in.has_key_scale), "{}: query_scale and key_scale go with float8_e4m3 inputs only", function);
  if (scaled) {
    require_extents(function, "query_scale", in.query_scale, {batch, queries, heads});
    require_extents(function, "key_scale", in.key_scale, {batch, keys});
  }

  require(in.has_cu_seqlens_q == in.has_cu_seqlens_k, "{}: packed sequences need both cu_seqlens_q and cu_seqlens_k", function);
  const bool packed = in.has_cu_seqlens_q;
  require(!packed || batch == 1, "{}: packed sequences go with query [S,H,D] and key [T,D]; the batch is {}", function, batch);
  require(!packed || in.cu_seqlens_q.extents[0] >= 1, "{}: cu_seqlens_q is empty, expected sequences + 1 entries", function);
  require(!packed || in.cu_seqlens_q.extents[0] == in.cu_seqlens_k.extents[0], "{}: cu_seqlens_q has {} entries, cu_seqlens_k has {}",
          function, in.cu_seqlens_q.extents[0], in.cu_seqlens_k.extents[0]);
  const std::int64_t sequences = packed ? in.cu_seqlens_q.extents[0] - 1 : batch;
  if (in.has_query_offsets) require_extents(function, "query_offsets", in.query_offsets, {sequences});
  if (in.has_range) require_extents(function, "range", in.range, {batch, queries, 2});

  require(options.chunk_queries >= 0 && options.chunk_queries <= (1 << 16), "{}: chunk_queries is {}, expected 0 ... 2^16", function,
          options.chunk_queries);
  require(options.chunk_keys >= 0 && options.chunk_keys <= (1 << 20), "{}: chunk_keys is {}, expected 0 ... 2^20", function,
          options.chunk_keys);
  require(options.key_splits >= 0 && options.key_splits <= 65536, "{}: key_splits is {}, expected 0 ... 65536", function,
          options.key_splits);

  const auto inputs = {std::pair{"query", footprint(in.query, element_size(in.type))},
                       std::pair{"key", footprint(in.key, element_size(in.type))},
                       std::pair{"weights", footprint(in.weights, sizeof(float))},
                       std::pair{"query_scale", footprint(in.query_scale, sizeof(float))},
                       std::pair{"key_scale", footprint(in.key_scale, sizeof(float))},
                       std::pair{"query_offsets", footprint(in.query_offsets, 4)},
                       std::pair{"range", footprint(in.range, 4)},
                       std::pair{"cu_seqlens_q", footprint(in.cu_seqlens_q, 4)},
                       std::pair{"cu_seqlens_k", footprint(in.cu_seqlens_k, 4)}};
  for (const auto& [output_name, output] : outputs)
    for (const auto& [name, input] : inputs) require_disjoint(function, output_name, output, name, input);

  return {.type                = in.type,
          .batch               = batch,
          .queries             = queries,
          .keys                = keys,
          .heads               = static_cast<std::int32_t>(heads),
          .head_dim            = static_cast<std::int32_t>(head_dim),
          .query               = in.query.data,
          .key                 = in.key.data,
          .weights             = in.weights.data,
          .query_scale         = in.query_scale.data,
          .key_scale           = in.key_scale.data,
          .query_strides       = {in.query.strides[0], in.query.strides[1], in.query.strides[2]},
          .key_strides         = {in.key.strides[0], in.key.strides[1]},
          .weight_strides      = {in.weights.strides[0], in.weights.strides[1]},
          .query_scale_strides = {in.query_scale.strides[0], in.query_scale.strides[1]},
          .key_scale_stride    = in.key_scale.strides[0],
          .ratio               = in.ratio,
          .query_offset        = in.query_offset,
          .query_offsets       = in.query_offsets.data,
          .range               = in.range.data,
          .range_strides       = {in.range.strides[0], in.range.strides[1]},
          .packed              = {in.cu_seqlens_q.data, in.cu_seqlens_k.data, sequences}};
}

IndexerProblem check_indexer_score(const IndexerScoreArguments& arguments, const IndexerOptions& options) {
  const auto problem = check_indexer("indexer_score", arguments.inputs, options, {{"scores", footprint(arguments.scores, sizeof(float))}});
  const std::int64_t columns = arguments.inputs.has_cu_seqlens_k ? arguments.scores.extents[2] : problem.keys;
  require_extents("indexer_score", "scores", arguments.scores, {problem.batch, problem.queries, columns});
  require_distinct_elements("indexer_score", "scores", arguments.scores);
  return problem;
}

std::pair<IndexerProblem, TopkOutput> check_indexer_topk(const IndexerTopkArguments& arguments, const IndexerOptions& options) {
  const auto problem = check_indexer(
      "indexer_topk", arguments.inputs, options,
      {{"indices", footprint(arguments.indices, sizeof(std::int32_t))}, {"scores", footprint(arguments.scores, sizeof(float))}});
  const auto output = check_topk_output("indexer_topk", arguments.indices, arguments.has_scores, arguments.scores, options.order);
  require_extents("indexer_topk", "indices", arguments.indices, {problem.batch, problem.queries, output.top_k});
  return {problem, output};
}

}  // namespace Tributary::Impl
