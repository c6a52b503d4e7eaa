#pragma once
#include <cstdint>
#include <optional>
#include <variant>

#include "Tributary_Level.hpp"
#include "Tributary_Sequences.hpp"
#include "Tributary_Topk.hpp"
#include "Tributary_Types.hpp"
#include "impl/Tributary_Operator.hpp"

/// \file
/// The lightning indexer of DeepSeek-V3.2 and V4 (V4 report, section 2.3): every query scores every legal key with a few small heads,
///   I(t,s) = sum_h w[t,h] * relu(q[t,h] . k[s]),    relu(NaN) = NaN,
/// and the k best keys are kept.

namespace Tributary {

/// Every key is legal for every query.
struct FullKeys {};

/// Key s is legal for query t iff s < (query_offset + t + 1) / ratio, integer division: key s stands for tokens ratio*s ...
/// ratio*(s+1)-1, all of which lie at or before the query's.  ratio = 1 is ordinary causal order.
struct RatioCausal {
  std::int32_t ratio        = 1;  ///< >= 1
  std::int32_t query_offset = 0;  ///< >= 0: the position of query 0
  /// [batch] (or [sequences]): an offset for each, in place of query_offset.  A negative one counts as 0.
  ArrayOption<std::int32_t, 1> query_offsets = {};
};

/// Key s is legal for query t iff range[t,0] <= s < range[t,1], clipped to [0, keys].
struct KeyRange {
  ArrayOption<std::int32_t, 3> range;  ///< [queries, 2] or [batch, queries, 2]
};

using LegalKeys = std::variant<FullKeys, RatioCausal, KeyRange>;

struct IndexerOptions {
  LegalKeys       legal_keys = FullKeys{};
  PackedSequences sequences  = {};
  /// For float8_e4m3_t, and only for it: finite positive scales of each query head, [S, H] or [B, S, H] ...
  ArrayOption<float, 3> query_scale = {};
  /// ... and of each key row, [T] or [B, T].  A stored value times its scale is the value.
  ArrayOption<float, 2> key_scale = {};
  TopkOrder             order     = TopkOrder::by_score;  ///< indexer_topk only
  Level                 level     = Level::automatic;
  // How the work is cut.  0 = chosen here.  They change time and memory, never a bit of the result.  The chunks are the portable level's;
  // the Hopper level has its own.
  std::int64_t chunk_queries = 0;  ///< queries that stay resident while keys stream past
  std::int64_t chunk_keys    = 0;  ///< keys streamed at a time
  /// Parts of the keys worked on at the same time; indexer_topk merges what they find.  At the Hopper level a number also selects the fused
  /// kernel where 0 may take the one for few queries, which cuts the keys in its own way.
  std::int64_t key_splits = 0;
};

namespace Impl {

struct IndexerArguments {
  ElementType                   type;
  Tensor<const void, 4>         query;
  Tensor<const void, 3>         key;
  Tensor<const float, 3>        weights;
  bool                          has_query_scale, has_key_scale;
  Tensor<const float, 3>        query_scale;
  Tensor<const float, 2>        key_scale;
  bool                          has_query_offsets, has_range, has_cu_seqlens_q, has_cu_seqlens_k;
  std::int32_t                  ratio, query_offset;  // ratio 0: not causal
  Tensor<const std::int32_t, 1> query_offsets;
  Tensor<const std::int32_t, 3> range;
  Tensor<const std::int32_t, 1> cu_seqlens_q, cu_seqlens_k;
};

struct IndexerTopkArguments {
  IndexerArguments        inputs;
  Tensor<std::int32_t, 3> indices;
  Tensor<float, 3>        scores;
  bool                    has_scores;
};

struct IndexerScoreArguments {
  IndexerArguments inputs;
  Tensor<float, 3> scores;
};

// Compiled in the library, once for each enabled execution space.
template <class Exec>
std::size_t indexer_score_workspace_size(const Exec&, const IndexerScoreArguments&, const IndexerOptions&);
template <class Exec>
void indexer_score(const Exec&, const IndexerScoreArguments&, const IndexerOptions&, const WorkspaceSpan&);
template <class Exec>
std::size_t indexer_topk_workspace_size(const Exec&, const IndexerTopkArguments&, const IndexerOptions&);
template <class Exec>
void indexer_topk(const Exec&, const IndexerTopkArguments&, const IndexerOptions&, const WorkspaceSpan&);

template <class Exec, AnyView Query, AnyView Key, AnyView Weights>
IndexerArguments indexer_arguments(std::string_view function, const Query& query, const Key& key, const Weights& weights,
                                   const IndexerOptions& options) {
  check_views<Exec, Query, Key, Weights>();
  using Value = typename Query::non_const_value_type;
  static_assert(Element<Value>, "Tributary: query must be float, bfloat16_t, half_t or float8_e4m3_t");
  static_assert(std::same_as<Value, typename Key::non_const_value_type>, "Tributary: query and key must have the same element type");
  static_assert(std::same_as<float, typename Weights::non_const_value_type>, "Tributary: weights must be float");
  static_assert(Query::rank() == Key::rank() + 1 && Query::rank() == Weights::rank() + 1,
                "Tributary: query [B,S,H,D] goes with key [B,T,D] and weights [B,S,H], query [S,H,D] with key [T,D] and weights [S,H]");
  const auto* causal = std::get_if<RatioCausal>(&options.legal_keys);
  const auto* range  = std::get_if<KeyRange>(&options.legal_keys);
  require(causal == nullptr || causal->ratio >= 1, "{}: RatioCausal::ratio is {}, expected 1 or more", function,
          causal ? causal->ratio : 1);
  require(causal == nullptr || causal->query_offset >= 0, "{}: RatioCausal::query_offset is {}, expected 0 or more", function,
          causal ? causal->query_offset : 0);
  require(range == nullptr || range->range.given(), "{}: KeyRange without its range", function);
  const ArrayOption<std::int32_t, 1> no_offsets;
  const ArrayOption<std::int32_t, 3> no_range;
  const auto&                        query_offsets = causal ? causal->query_offsets : no_offsets;
  const auto&                        key_range     = range ? range->range : no_range;
  return {.type              = element_type<Value>(),
          .query             = as<const void>(tensor<4>(function, "query", query)),
          .key               = as<const void>(tensor<3>(function, "key", key)),
          .weights           = as<const float>(tensor<3>(function, "weights", weights)),
          .has_query_scale   = options.query_scale.given(),
          .has_key_scale     = options.key_scale.given(),
          .query_scale       = options.query_scale.template on<Exec>(function, "query_scale"),
          .key_scale         = options.key_scale.template on<Exec>(function, "key_scale"),
          .has_query_offsets = query_offsets.given(),
          .has_range         = key_range.given(),
          .has_cu_seqlens_q  = options.sequences.cu_seqlens_q.given(),
          .has_cu_seqlens_k  = options.sequences.cu_seqlens_k.given(),
          .ratio             = causal ? causal->ratio : 0,
          .query_offset      = causal ? causal->query_offset : 0,
          .query_offsets     = query_offsets.template on<Exec>(function, "query_offsets"),
          .range             = key_range.template on<Exec>(function, "range"),
          .cu_seqlens_q      = options.sequences.cu_seqlens_q.template on<Exec>(function, "cu_seqlens_q"),
          .cu_seqlens_k      = options.sequences.cu_seqlens_k.template on<Exec>(function, "cu_seqlens_k")};
}

template <class Exec, class Query, class Key, class Weights, AnyView Scores>
IndexerScoreArguments indexer_score_arguments(const Query& query, const Key& key, const Weights& weights, const Scores& scores,
                                              const IndexerOptions& options) {
  check_views<Exec, Scores>();
  return {.inputs = indexer_arguments<Exec>("indexer_score", query, key, weights, options),
          .scores = output_tensor<float, 3>("indexer_score", "scores", scores)};
}

template <class Exec, class Query, class Key, class Weights, AnyView Indices, OptionalView Scores>
IndexerTopkArguments indexer_topk_arguments(const Query& query, const Key& key, const Weights& weights, const Indices& indices,
                                            const Scores& scores, const IndexerOptions& options) {
  check_views<Exec, Indices, Scores>();
  return {.inputs     = indexer_arguments<Exec>("indexer_topk", query, key, weights, options),
          .indices    = output_tensor<std::int32_t, 3>("indexer_topk", "indices", indices),
          .scores     = output_tensor<float, 3>("indexer_topk", "scores", scores),
          .has_scores = is_view<Scores>};
}

}  // namespace Impl

/// Bytes that indexer_score needs as its workspace for these arguments on this instance; bounded whatever the
/// numbers of queries and keys.
template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Weights, Impl::AnyView Scores>
std::size_t indexer_score_workspace_size(const Exec& exec, const Query& query, const Key& key, const Weights& weights, const Scores& scores,
                                         const IndexerOptions& options = {}) {
  return Impl::indexer_score_workspace_size(exec, Impl::indexer_score_arguments<Exec>(query, key, weights, scores, options), options);
}

/// Indexer scores of every query against every key, stored: S x T floats, so for small sizes, tests and comparisons.
///
/// \param exec     execution-space instance; all work is queued on it
/// \param query    [B, S, H, D], or [S, H, D] for one sequence or packed ones; float, bfloat16_t, half_t or float8_e4m3_t
/// \param key      [B, T, D] or [T, D], the query's type
/// \param weights  [B, S, H] or [S, H] float
/// \param scores   [B, S, T] or [S, T] float, out; -infinity where a key is not legal.  With packed sequences column s is the
///                 sequence's key s, and there may be fewer columns than keys (the longest sequence's)
/// \param options  legal keys, packed sequences, scales, level, cut of the work
/// \param workspace  rank-1 View of std::byte with at least indexer_score_workspace_size bytes.  With it nothing is allocated or
///                 fenced; without it the operator allocates one and fences when freeing it
/// \throws std::invalid_argument on mismatched extents, overlapping arrays, missing or superfluous scales, unreachable memory
template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Weights, Impl::AnyView Scores,
          Impl::WorkspaceView Workspace>
void indexer_score(const Exec& exec, const Query& query, const Key& key, const Weights& weights, const Scores& scores,
                   const IndexerOptions& options, const Workspace& workspace) {
  Impl::indexer_score(exec, Impl::indexer_score_arguments<Exec>(query, key, weights, scores, options), options,
                      Impl::workspace_span<Exec>(workspace));
}

template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Weights, Impl::AnyView Scores>
void indexer_score(const Exec& exec, const Query& query, const Key& key, const Weights& weights, const Scores& scores,
                   const IndexerOptions& options = {}) {
  const auto arguments = Impl::indexer_score_arguments<Exec>(query, key, weights, scores, options);
  const auto workspace = Impl::allocate_workspace(exec, Impl::indexer_score_workspace_size(exec, arguments, options));
  Impl::indexer_score(exec, arguments, options, Impl::workspace_span<Exec>(workspace));
}

/// On the default instance of the query's execution space.
template <Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Weights, Impl::AnyView Scores>
void indexer_score(const Query& query, const Key& key, const Weights& weights, const Scores& scores, const IndexerOptions& options = {}) {
  indexer_score(typename Query::execution_space{}, query, key, weights, scores, options);
}

/// Bytes that indexer_topk needs as its workspace for these arguments on this instance.  It is bounded
/// whatever the number of keys, but not the same for every shape (few queries are treated otherwise): ask for each.
template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Weights, Impl::AnyView Indices,
          Impl::OptionalView Scores>
std::size_t indexer_topk_workspace_size(const Exec& exec, const Query& query, const Key& key, const Weights& weights,
                                        const Indices& indices, const Scores& scores, const IndexerOptions& options = {}) {
  return Impl::indexer_topk_workspace_size(exec, Impl::indexer_topk_arguments<Exec>(query, key, weights, indices, scores, options),
                                           options);
}

/// For every query the k legal keys with the highest indexer scores, found while the keys stream past: no array of queries x keys
/// is ever held, but for 32 MiB of scores at most (few queries, Hopper level).  Order, ties, NaN and padding are topk's; the result is a
/// function of the scores alone.
///
/// \param exec     execution-space instance; all work is queued on it
/// \param query    [B, S, H, D], or [S, H, D] for one sequence or packed ones; float, bfloat16_t, half_t or float8_e4m3_t
/// \param key      [B, T, D] or [T, D], the query's type
/// \param weights  [B, S, H] or [S, H] float
/// \param indices  [B, S, k] or [S, k] int32, out; -1 where a query has fewer than k legal keys.  k >= 1 is its last extent
/// \param scores   the same extents, float, out, or std::nullopt; -infinity beside an index of -1, NaN as 0x7fc00000, -0 as +0
/// \param options  legal keys, packed sequences, scales, order, level, cut of the work
/// \param workspace  rank-1 View of std::byte with at least indexer_topk_workspace_size bytes.  With it nothing is allocated or
///                 fenced; without it the operator allocates one and fences when freeing it
/// \throws std::invalid_argument on mismatched extents, k = 0, overlapping arrays, missing or superfluous scales, unreachable memory
template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Weights, Impl::AnyView Indices,
          Impl::OptionalView Scores, Impl::WorkspaceView Workspace>
void indexer_topk(const Exec& exec, const Query& query, const Key& key, const Weights& weights, const Indices& indices,
                  const Scores& scores, const IndexerOptions& options, const Workspace& workspace) {
  Impl::indexer_topk(exec, Impl::indexer_topk_arguments<Exec>(query, key, weights, indices, scores, options), options,
                     Impl::workspace_span<Exec>(workspace));
}

template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Weights, Impl::AnyView Indices,
          Impl::OptionalView Scores>
void indexer_topk(const Exec& exec, const Query& query, const Key& key, const Weights& weights, const Indices& indices,
                  const Scores& scores, const IndexerOptions& options = {}) {
  const auto arguments = Impl::indexer_topk_arguments<Exec>(query, key, weights, indices, scores, options);
  const auto workspace = Impl::allocate_workspace(exec, Impl::indexer_topk_workspace_size(exec, arguments, options));
  Impl::indexer_topk(exec, arguments, options, Impl::workspace_span<Exec>(workspace));
}

/// On the default instance of the query's execution space.
template <Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Weights, Impl::AnyView Indices, Impl::OptionalView Scores>
void indexer_topk(const Query& query, const Key& key, const Weights& weights, const Indices& indices, const Scores& scores,
                  const IndexerOptions& options = {}) {
  indexer_topk(typename Query::execution_space{}, query, key, weights, indices, scores, options);
}

}  // namespace Tributary
