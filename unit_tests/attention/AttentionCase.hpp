#pragma once
#include <any>
#include <optional>
#include <string>
#include <vector>

#include "Support.hpp"

// Calls of attention_forward and attention_backward on host arrays.

namespace TributaryTest {

using Tributary::AttentionGradients;
using Tributary::AttentionOptions;
using Tributary::AttentionState;
using Tributary::RotaryStyle;

inline constexpr float infinite = std::numeric_limits<float>::infinity();

struct AttentionShape {
  std::int64_t batch = 1, queries = 1, keys = 1, heads = 1, key_heads = 1, head_dim = 1, value_dim = 1;
};

inline std::string text(const AttentionShape& shape) {
  return "B " + std::to_string(shape.batch) + ", Sq " + std::to_string(shape.queries) + ", Sk " + std::to_string(shape.keys) + ", Hq " +
         std::to_string(shape.heads) + ", Hkv " + std::to_string(shape.key_heads) + ", D " + std::to_string(shape.head_dim) + ", Dv " +
         std::to_string(shape.value_dim);
}

/// Inputs on the host: those of AttentionOptions' arrays that are given, and `options` for its numbers.
template <class Element>
struct AttentionCase {
  Array<Element, 4>                     query, key, value;
  AttentionOptions                      options;
  std::optional<Array<std::uint8_t, 2>> key_keep;
  std::optional<Array<std::uint8_t, 4>> keep;
  std::optional<Array<float, 4>>        additive_mask;
  std::optional<Array<float, 2>>        alibi_slopes, relative_bias, cosine, sine;
  std::optional<Array<float, 1>>        sink;
  std::optional<Array<std::int32_t, 2>> query_positions, key_positions;
  std::vector<std::int32_t>             cu_seqlens_q, cu_seqlens_k;
  std::optional<Array<float, 4>>        previous_out;
  std::optional<Array<float, 3>>        previous_lse;
  std::optional<Array<float, 3>>        query_scale, key_scale, value_scale;  // of e4m3

  explicit AttentionCase(const AttentionShape& shape)
      : query({shape.batch, shape.queries, shape.heads, shape.head_dim}),
        key({shape.batch, shape.keys, shape.key_heads, shape.head_dim}),
        value({shape.batch, shape.keys, shape.key_heads, shape.value_dim}) {}
  AttentionCase(const AttentionShape& shape, Random& random) : AttentionCase(shape) {
    random.fill_with_normals(query);
    random.fill_with_normals(key);
    random.fill_with_normals(value);
  }
  AttentionShape shape() const {
    return {query.extents[0], query.extents[1], key.extents[1], query.extents[2], key.extents[2], query.extents[3], value.extents[3]};
  }
};

template <class Out>
struct AttentionResult {
  Array<Out, 4>   out;
  Array<float, 3> lse;
};

template <class Element>
struct AttentionGradientArrays {
  Array<Element, 4> query, key, value;
  Array<float, 4>   additive_mask;
  Array<float, 2>   alibi_slopes, relative_bias;
  Array<float, 1>   sink;
};

/// What goes into attention_backward beside the inputs.
template <class Out>
struct AttentionUpstream {
  AttentionResult<Out>           forward;
  Array<Out, 4>                  grad_out;
  std::optional<Array<float, 3>> grad_lse;
};

/// The inputs and options in the tested space, alive as long as the call needs them.
template <class Element, class Out = Element>
class AttentionCall {
 public:
  View<Element, 4> query, key, value;
  AttentionOptions options;

  AttentionCall(Level level, const AttentionCase<Element>& in)
      : query(in_space(in.query)), key(in_space(in.key)), value(in_space(in.value)), options(in.options), in_(in) {
    options.level = level;
    give(options.key_keep, in.key_keep);
    give(options.keep, in.keep);
    give(options.additive_mask, in.additive_mask);
    give(options.alibi_slopes, in.alibi_slopes);
    give(options.relative_bias.table, in.relative_bias);
    give(options.sink, in.sink);
    give(options.rotary.cosine, in.cosine);
    give(options.rotary.sine, in.sine);
    give(options.rotary.query_positions, in.query_positions);
    give(options.rotary.key_positions, in.key_positions);
    give(options.previous.out, in.previous_out);
    give(options.previous.lse, in.previous_lse);
    give(options.query_scale, in.query_scale);
    give(options.key_scale, in.key_scale);
    give(options.value_scale, in.value_scale);
    if (in.cu_seqlens_q.empty()) return;
    give(options.sequences.cu_seqlens_q, std::optional(row(in.cu_seqlens_q)));
    give(options.sequences.cu_seqlens_k, std::optional(row(in.cu_seqlens_k)));
  }

  /// Results over memory that was not zero.
  AttentionResult<Out> empty_result() const {
    const auto shape = in_.shape();
    return {Array<Out, 4>({shape.batch, shape.queries, shape.heads, shape.value_dim}, Out(7.0f)),
            Array<float, 3>({shape.batch, shape.heads, shape.queries}, 7.0f)};
  }
  AttentionResult<Out> forward() const {
    const auto empty = empty_result();
    const auto out   = in_space(empty.out);
    const auto lse   = in_space(empty.lse);
    Tributary::attention_forward(Space{}, query, key, value, out, lse, options);
    return {from_space<4>(out), from_space<3>(lse)};
  }
  /// Every gradient there is.
  AttentionGradientArrays<Element> backward(const AttentionUpstream<Out>& upstream, const Space& exec = Space{}) const {
    const auto garbage = []<class T, int Rank>(const Array<T, Rank>& like) { return in_space(Array<T, Rank>(like.extents, T(7.0f))); };
    const auto optional_garbage = [&]<class T, int Rank>(const std::optional<Array<T, Rank>>& like) {
      return garbage(like.value_or(Array<T, Rank>{}));
    };
    const auto         out = in_space(upstream.forward.out), grad_out = in_space(upstream.grad_out);
    const auto         lse = in_space(upstream.forward.lse), grad_lse = in_space(upstream.grad_lse.value_or(Array<float, 3>{}));
    const auto         grad_query = garbage(in_.query), grad_key = garbage(in_.key), grad_value = garbage(in_.value);
    const auto         additive_mask = optional_garbage(in_.additive_mask);
    const auto         alibi_slopes = optional_garbage(in_.alibi_slopes), relative_bias = optional_garbage(in_.relative_bias);
    const auto         sink = optional_garbage(in_.sink);
    AttentionGradients gradients;
    if (upstream.grad_lse) gradients.lse = grad_lse;
    if (in_.additive_mask) gradients.additive_mask = additive_mask;
    if (in_.alibi_slopes) gradients.alibi_slopes = alibi_slopes;
    if (in_.relative_bias) gradients.relative_bias = relative_bias;
    if (in_.sink) gradients.sink = sink;
    Tributary::attention_backward(exec, query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options, gradients);
    exec.fence();
    return {from_space<4>(grad_query),   from_space<4>(grad_key),      from_space<4>(grad_value), from_space<4>(additive_mask),
            from_space<2>(alibi_slopes), from_space<2>(relative_bias), from_space<1>(sink)};
  }

 private:
  AttentionCase<Element> in_;
  std::vector<std::any>  alive_;

  template <class T, int Rank>
  void give(Tributary::ArrayOption<T, Rank>& option, const std::optional<Array<T, Rank>>& array) {
    if (!array) return;
    const auto view = in_space(*array);
    option          = view;
    alive_.emplace_back(view);
  }
};

/// Random gradients of these results.
template <class Out>
AttentionUpstream<Out> random_upstream(Random& random, const AttentionResult<Out>& forward, bool with_lse) {
  AttentionUpstream<Out> upstream{forward, Array<Out, 4>(forward.out.extents), {}};
  random.fill_with_normals(upstream.grad_out);
  if (with_lse) {
    upstream.grad_lse = Array<float, 3>(forward.lse.extents);
    random.fill_with_normals(*upstream.grad_lse);
  }
  return upstream;
}

}  // namespace TributaryTest
