#pragma once
#include <span>

#include "Tributary_Attention.hpp"
#include "Tributary_Indexer.hpp"
#include "Tributary_Quantize.hpp"
#include "Tributary_Topk.hpp"

/// The definition of every operator: the obvious loops on one host thread, with double accumulators.  Arguments, results and errors
/// are the operator's of the same name; Views must be reachable from the host.  `options.level` and the options that cut the work
/// have no meaning here.
namespace Tributary::Reference {

namespace Impl {

using Space = Kokkos::DefaultHostExecutionSpace;

template <class Options>
Options at_reference_level(Options options) {
  options.level = Level::reference;
  return options;
}

}  // namespace Impl

template <class Query, class Key, class Value, class Out, class Lse>
void attention_forward(const Query& query, const Key& key, const Value& value, const Out& out, const Lse& lse,
                       const AttentionOptions& options = {}) {
  Tributary::attention_forward(Impl::Space{}, query, key, value, out, lse, Impl::at_reference_level(options));
}

template <class Query, class Key, class Value, class Out, class Lse, class GradOut, class GradQuery, class GradKey, class GradValue>
void attention_backward(const Query& query, const Key& key, const Value& value, const Out& out, const Lse& lse, const GradOut& grad_out,
                        const GradQuery& grad_query, const GradKey& grad_key, const GradValue& grad_value,
                        const AttentionOptions& options = {}, const AttentionGradients& gradients = {}) {
  Tributary::attention_backward(Impl::Space{}, query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value,
                                Impl::at_reference_level(options), gradients);
}

template <class Out, class Lse>
void attention_merge(std::span<const AttentionState> states, const Out& out, const Lse& lse, const AttentionMergeOptions& options = {}) {
  Tributary::attention_merge(Impl::Space{}, states, out, lse, Impl::at_reference_level(options));
}

template <class Query, class Key, class Weights, class Scores>
void indexer_score(const Query& query, const Key& key, const Weights& weights, const Scores& scores, const IndexerOptions& options = {}) {
  Tributary::indexer_score(Impl::Space{}, query, key, weights, scores, Impl::at_reference_level(options));
}

template <class Query, class Key, class Weights, class Indices, class Scores>
void indexer_topk(const Query& query, const Key& key, const Weights& weights, const Indices& indices, const Scores& scores,
                  const IndexerOptions& options = {}) {
  Tributary::indexer_topk(Impl::Space{}, query, key, weights, indices, scores, Impl::at_reference_level(options));
}

template <class Values, class Indices, class Scores>
void topk(const Values& values, const Indices& indices, const Scores& scores, const TopkOptions& options = {}) {
  Tributary::topk(Impl::Space{}, values, indices, scores, Impl::at_reference_level(options));
}

template <class Indices, class Scores>
void topk_merge(std::span<const TopkList> lists, const Indices& indices, const Scores& scores, const TopkMergeOptions& options = {}) {
  Tributary::topk_merge(Impl::Space{}, lists, indices, scores, Impl::at_reference_level(options));
}

template <class Values, class Quantized, class Scales>
void quantize_e4m3(const Values& values, const Quantized& quantized, const Scales& scales) {
  Tributary::quantize_e4m3(Impl::Space{}, values, quantized, scales, {.level = Level::reference});
}

template <class Values, class Quantized, class Scales>
void quantize_e4m3_heads(const Values& values, const Quantized& quantized, const Scales& scales) {
  Tributary::quantize_e4m3_heads(Impl::Space{}, values, quantized, scales, {.level = Level::reference});
}

}  // namespace Tributary::Reference
