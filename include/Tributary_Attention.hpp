#pragma once
#include <cstdint>
#include <optional>
#include <span>

#include "Tributary_Level.hpp"
#include "Tributary_Quantize.hpp"
#include "Tributary_Sequences.hpp"
#include "Tributary_Types.hpp"
#include "impl/Tributary_Operator.hpp"
#include "impl/Tributary_Tensor.hpp"

/// \file
/// Dense attention with an online softmax: O = softmax(x) V over x[i,j] = cap * tanh(scale * (q_i . k_j) / cap) + biases, its gradients,
/// and the merging of partial results.  B batch, Sq queries, Sk keys, Hq query heads, Hkv key heads, D and Dv head dimensions; i' = i + Sk
/// - Sq is query i's position among the keys, so that causal order is aligned at the end.  A call that holds a stretch of longer sequences
/// says where it lies, see AttentionOptions::query_offset.

namespace Tributary {

/// Which components a rotation pairs: `half` (r, r + n/2), `interleaved` (2r, 2r + 1).
enum class RotaryStyle { half, interleaved };

/// Rotary position embedding (RoFormer, arXiv:2104.09864) of `dims` components of every query and key head: pair r turns by
/// position * base^(-2r/dims).  Rotated values are rounded to the input type before the product.
struct RotaryEmbedding {
  std::int32_t                 dims            = 0;  ///< 0: none; even, at most D
  RotaryStyle                  style           = RotaryStyle::half;
  bool                         last            = false;  ///< the head's last `dims` components instead of its first
  double                       base            = 10000;
  ArrayOption<float, 2>        cosine          = {};  ///< [positions, dims/2], with sine: a table in place of the formula (YaRN, Llama 3)
  ArrayOption<float, 2>        sine            = {};
  ArrayOption<std::int32_t, 2> query_positions = {};  ///< [Sq] or [B, Sq]; not given: i'.  Beyond a table's ends: its ends
  ArrayOption<std::int32_t, 2> key_positions   = {};  ///< [Sk] or [B, Sk]; not given: j
};

/// A learned bias for each bucket of distances, with T5's bucket function of j - i' (arXiv:1910.10683): half of the buckets are single
/// distances, the rest grow logarithmically up to max_distance; bidirectional: half for keys behind the query, half for those before.
struct RelativePositionBias {
  ArrayOption<float, 2> table         = {};   ///< [buckets, Hq]; 2 ... 1024 buckets, an even number when bidirectional
  std::int32_t          max_distance  = 128;  ///< at most 2^24
  bool                  bidirectional = true;
};

/// Dropout of attention weights with Philox4x32-10 (Salmon et al., SC11): the seed is the key; element (b,h,i,j) is dropped iff word j%4 of
/// counter (j/4, i, b*Hq + h, offset) is below floor(probability * 2^32).  Kept weights are divided by 1 - probability; LSE does not see
/// it.  With a query_offset i and j count from the sequences' beginnings (i modulo 2^32), so that the mask is the same however they are
/// cut.
struct Dropout {
  double        probability = 0;
  std::uint64_t seed        = 0;
  std::uint32_t offset      = 0;
};

/// The result over the keys seen so far: outputs normalised, without a sink, and the log of their denominators.
struct AttentionState {
  ArrayOption<float, 4> out = {};  ///< [B, Sq, Hq, Dv] or [Sq, Hq, Dv]
  ArrayOption<float, 3> lse = {};  ///< [B, Hq, Sq] or [Hq, Sq]; -infinity: nothing seen yet
};

/// Rows of keys that key_keep hides may hold anything.  Pairs that are hidden otherwise (keep, causal, window, additive_mask) have weight 0
/// but their values are read: they must be finite numbers.
struct AttentionOptions {
  std::optional<float>         scale         = {};     ///< 1/sqrt(D) when not given
  bool                         causal        = false;  ///< j <= i'
  std::int64_t                 window_left   = -1;     ///< i' - window_left <= j; -1: no limit
  std::int64_t                 window_right  = -1;     ///< j <= i' + window_right; -1: no limit
  float                        softcap       = 0;      ///< cap * tanh(scaled score / cap); 0: none
  ArrayOption<std::uint8_t, 2> key_keep      = {};     ///< [B, Sk]; nonzero: the key takes part
  ArrayOption<std::uint8_t, 4> keep          = {};     ///< [B|1, Hq|1, Sq|1, Sk]; nonzero: the pair takes part
  ArrayOption<float, 4>        additive_mask = {};     ///< [B|1, Hq|1, Sq|1, Sk], added to the score; -infinity hides a pair
  ArrayOption<float, 2>        alibi_slopes  = {};     ///< [Hq], [B, Hq], packed [sequences, Hq]: adds -slope * |i' - j| (arXiv:2108.12409)
  RelativePositionBias         relative_bias = {};
  ArrayOption<float, 1>        sink          = {};  ///< [Hq]: exp(sink) joins the denominator only
  RotaryEmbedding              rotary        = {};
  Dropout                      dropout       = {};
  /// A stretch of longer sequences, as a rank of a ring or a step of decoding holds it: queries query_offset, query_offset + 1, ... and
  /// keys key_offset, key_offset + 1, ...  These numbers are i and j, and i' = i, in all that counts them: causal, windows, ALiBi, relative
  /// bias, rotary embedding without arrays of positions, dropout.  Arrays (masks, positions, LSE, gradients) hold the stretch only.
  /// Without query_offset a call holds whole sequences: i and j count from 0, i' = i + Sk - Sq, and key_offset must be 0.
  /// All of a batch lie alike; not together with packed sequences, each of which would lie elsewhere.
  std::optional<std::int64_t> query_offset = {};  ///< -2^31 ... 2^31 - Sq; negative where queries begin before key 0
  std::int64_t                key_offset   = 0;   ///< 0 ... 2^31 - Sk
  /// query [Sq,Hq,D], key [Sk,Hkv,D], value [Sk,Hkv,Dv] hold sequences one behind another; masks, positions and distances count within
  /// a sequence.  key_keep is then [Sk]; a row of keep and additive_mask is a packed query row, a column a key's number in its sequence.
  PackedSequences sequences = {};
  /// For float8_e4m3_t, and only for it: finite positive scales, one for each attention_scale_rows neighbouring rows of a head, whatever
  /// sequence they are in: a stored value times its scale is the value.  quantize_e4m3_heads makes them.  The Hopper level rounds weights
  /// to e4m3, too: those below some 2^-18 of their row's greatest count in the denominator but not in the sum of values; and it copies the
  /// values in every call (B Hkv Dv ceil(Sk/128) 128 bytes of workspace, Hkv Dv 128 more a packed sequence), which costs little where
  /// queries are many.
  ArrayOption<float, 3> query_scale = {};  ///< [B, Hq, ceil(Sq/128)]
  ArrayOption<float, 3> key_scale   = {};  ///< [B, Hkv, ceil(Sk/128)]
  ArrayOption<float, 3> value_scale = {};  ///< [B, Hkv, ceil(Sk/128)]
  /// attention_forward only: goes on from this state, as if its keys had come in the same call; out and lse must be other arrays.  The
  /// state has no sink: give it to the call with the last keys, or to the last attention_merge.  What counts positions (see query_offset)
  /// needs query_offset here, even 0: without it positions would count from the end of this call's keys.
  AttentionState previous = {};
  /// attention_backward only: the same bits every time.  false lets the Hopper level add up the gradients of queries in whatever order
  /// their parts come; the other levels keep the order, which costs them nothing.
  bool  deterministic = true;
  Level level         = Level::automatic;
};

/// What attention_backward takes and gives beside the gradients of query, key and value.
struct AttentionGradients {
  ArrayOption<float, 3> lse = {};  ///< in: gradient of the LSE that attention_forward returned, its extents; not given: zero
  // Out, each written when given, with the extents of its input.  But for the sink's they take time: the portable level multiplies scores
  // again for a mask's, the Hopper level for any of them.
  OutputOption<float, 4> additive_mask = {};
  OutputOption<float, 2> alibi_slopes  = {};
  OutputOption<float, 2> relative_bias = {};  ///< of the table
  OutputOption<float, 1> sink          = {};
};

namespace Impl {

/// The inputs of forward and backward as the public templates hand them over.
struct AttentionArguments {
  ElementType                   type;
  Tensor<const void, 4>         query, key, value;
  const AttentionOptions*       options;  // its scalars, and which arrays are given
  Tensor<const std::uint8_t, 2> key_keep;
  Tensor<const std::uint8_t, 4> keep;
  Tensor<const float, 4>        additive_mask;
  Tensor<const float, 2>        alibi_slopes, relative_bias;
  Tensor<const float, 1>        sink;
  Tensor<const float, 2>        cosine, sine;
  Tensor<const std::int32_t, 2> query_positions, key_positions;
  Tensor<const std::int32_t, 1> cu_seqlens_q, cu_seqlens_k;
  Tensor<const float, 3>        query_scale, key_scale, value_scale;
};

struct AttentionForwardArguments {
  AttentionArguments     inputs;
  ElementType            out_type;  // the query's, or float; of e4m3 any but e4m3
  Tensor<void, 4>        out;
  Tensor<float, 3>       lse;
  bool                   has_lse;
  Tensor<const float, 4> previous_out;
  Tensor<const float, 3> previous_lse;
};

struct AttentionBackwardArguments {
  AttentionArguments        inputs;
  ElementType               out_type;  // of out and grad_out
  Tensor<const void, 4>     out, grad_out;
  Tensor<const float, 3>    lse, grad_lse;
  Tensor<void, 4>           grad_query, grad_key, grad_value;
  const AttentionGradients* gradients;  // which are given
  Tensor<float, 4>          grad_additive_mask;
  Tensor<float, 2>          grad_alibi_slopes, grad_relative_bias;
  Tensor<float, 1>          grad_sink;
};

struct AttentionMergeArguments {
  struct State {
    Tensor<const float, 4> out;
    Tensor<const float, 3> lse;
  };
  std::span<const State> states;
  Tensor<const float, 1> sink;
  bool                   has_sink;
  ElementType            out_type;
  Tensor<void, 4>        out;
  Tensor<float, 3>       lse;
  bool                   has_lse;
};

// Compiled in the library, once for each enabled execution space.
template <class Exec>
std::size_t attention_forward_workspace_size(const Exec&, const AttentionForwardArguments&);
template <class Exec>
void attention_forward(const Exec&, const AttentionForwardArguments&, const WorkspaceSpan&);
template <class Exec>
std::size_t attention_backward_workspace_size(const Exec&, const AttentionBackwardArguments&);
template <class Exec>
void attention_backward(const Exec&, const AttentionBackwardArguments&, const WorkspaceSpan&);
template <class Exec>
void attention_merge(const Exec&, const AttentionMergeArguments&, Level);

template <class Exec, AnyView Query, AnyView Key, AnyView Value>
AttentionArguments attention_arguments(std::string_view function, const Query& query, const Key& key, const Value& value,
                                       const AttentionOptions& options) {
  check_views<Exec, Query, Key, Value>();
  using Number = typename Query::non_const_value_type;
  static_assert(Element<Number>, "Tributary: query must be float, bfloat16_t, half_t or float8_e4m3_t");
  static_assert(std::same_as<Number, typename Key::non_const_value_type> && std::same_as<Number, typename Value::non_const_value_type>,
                "Tributary: query, key and value must have the same element type");
  static_assert(Query::rank() == Key::rank() && Query::rank() == Value::rank(), "Tributary: query, key and value must have the same rank");
  return {.type            = element_type<Number>(),
          .query           = as<const void>(tensor<4>(function, "query", query)),
          .key             = as<const void>(tensor<4>(function, "key", key)),
          .value           = as<const void>(tensor<4>(function, "value", value)),
          .options         = &options,
          .key_keep        = options.key_keep.template on<Exec>(function, "key_keep"),
          .keep            = options.keep.template on<Exec>(function, "keep"),
          .additive_mask   = options.additive_mask.template on<Exec>(function, "additive_mask"),
          .alibi_slopes    = options.alibi_slopes.template on<Exec>(function, "alibi_slopes"),
          .relative_bias   = options.relative_bias.table.template on<Exec>(function, "relative_bias.table"),
          .sink            = options.sink.template on<Exec>(function, "sink"),
          .cosine          = options.rotary.cosine.template on<Exec>(function, "rotary.cosine"),
          .sine            = options.rotary.sine.template on<Exec>(function, "rotary.sine"),
          .query_positions = options.rotary.query_positions.template on<Exec>(function, "rotary.query_positions"),
          .key_positions   = options.rotary.key_positions.template on<Exec>(function, "rotary.key_positions"),
          .cu_seqlens_q    = options.sequences.cu_seqlens_q.template on<Exec>(function, "cu_seqlens_q"),
          .cu_seqlens_k    = options.sequences.cu_seqlens_k.template on<Exec>(function, "cu_seqlens_k"),
          .query_scale     = options.query_scale.template on<Exec>(function, "query_scale"),
          .key_scale       = options.key_scale.template on<Exec>(function, "key_scale"),
          .value_scale     = options.value_scale.template on<Exec>(function, "value_scale")};
}

/// The element type of an output that has the query's type or float; of e4m3 it may be any other.
template <class Query, class Out>
constexpr ElementType attention_out_type() {
  using Number        = typename Out::non_const_value_type;
  constexpr bool e4m3 = std::same_as<typename Query::non_const_value_type, float8_e4m3_t>;
  static_assert(e4m3 || std::same_as<Number, typename Query::non_const_value_type> || std::same_as<Number, float>,
                "Tributary: out must have the query's element type, or float");
  static_assert(Element<Number> && !std::same_as<Number, float8_e4m3_t>, "Tributary: out must be float, bfloat16_t or half_t");
  return element_type<Number>();
}

template <class Exec, class Query, class Key, class Value, AnyView Out, OptionalView Lse>
AttentionForwardArguments attention_forward_arguments(const Query& query, const Key& key, const Value& value, const Out& out,
                                                      const Lse& lse, const AttentionOptions& options) {
  check_views<Exec, Out, Lse>();
  return {.inputs       = attention_arguments<Exec>("attention_forward", query, key, value, options),
          .out_type     = attention_out_type<Query, Out>(),
          .out          = as<void>(output_tensor<typename Out::non_const_value_type, 4>("attention_forward", "out", out)),
          .lse          = output_tensor<float, 3>("attention_forward", "lse", lse),
          .has_lse      = is_view<Lse>,
          .previous_out = options.previous.out.template on<Exec>("attention_forward", "previous.out"),
          .previous_lse = options.previous.lse.template on<Exec>("attention_forward", "previous.lse")};
}

template <class Exec, class Query, class Key, class Value, AnyView Out, AnyView Lse, AnyView GradOut, AnyView GradQuery, AnyView GradKey,
          AnyView GradValue>
AttentionBackwardArguments attention_backward_arguments(const Query& query, const Key& key, const Value& value, const Out& out,
                                                        const Lse& lse, const GradOut& grad_out, const GradQuery& grad_query,
                                                        const GradKey& grad_key, const GradValue& grad_value,
                                                        const AttentionOptions& options, const AttentionGradients& gradients) {
  constexpr std::string_view f = "attention_backward";
  static_assert(!std::same_as<typename Query::non_const_value_type, float8_e4m3_t>,
                "Tributary: attention_backward takes float, bfloat16_t or half_t; float8_e4m3_t is attention_forward's only");
  check_views<Exec, Out, Lse, GradOut, GradQuery, GradKey, GradValue>();
  static_assert(std::same_as<typename Out::non_const_value_type, typename GradOut::non_const_value_type>,
                "Tributary: out and its gradient must have the same element type");
  static_assert(std::same_as<typename Lse::non_const_value_type, float>, "Tributary: lse must be float");
  using Number = typename Query::non_const_value_type;
  return {.inputs             = attention_arguments<Exec>(f, query, key, value, options),
          .out_type           = attention_out_type<Query, Out>(),
          .out                = as<const void>(tensor<4>(f, "out", out)),
          .grad_out           = as<const void>(tensor<4>(f, "grad_out", grad_out)),
          .lse                = as<const float>(tensor<3>(f, "lse", lse)),
          .grad_lse           = gradients.lse.template on<Exec>(f, "the gradient of lse"),
          .grad_query         = as<void>(output_tensor<Number, 4>(f, "grad_query", grad_query)),
          .grad_key           = as<void>(output_tensor<Number, 4>(f, "grad_key", grad_key)),
          .grad_value         = as<void>(output_tensor<Number, 4>(f, "grad_value", grad_value)),
          .gradients          = &gradients,
          .grad_additive_mask = gradients.additive_mask.template on<Exec>(f, "the gradient of additive_mask"),
          .grad_alibi_slopes  = gradients.alibi_slopes.template on<Exec>(f, "the gradient of alibi_slopes"),
          .grad_relative_bias = gradients.relative_bias.template on<Exec>(f, "the gradient of relative_bias"),
          .grad_sink          = gradients.sink.template on<Exec>(f, "the gradient of sink")};
}

}  // namespace Impl

/// Bytes that attention_forward needs as its workspace for these arguments on this instance.
template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Value, Impl::AnyView Out, Impl::OptionalView Lse>
std::size_t attention_forward_workspace_size(const Exec& exec, const Query& query, const Key& key, const Value& value, const Out& out,
                                             const Lse& lse, const AttentionOptions& options = {}) {
  return Impl::attention_forward_workspace_size(exec, Impl::attention_forward_arguments<Exec>(query, key, value, out, lse, options));
}

/// O = softmax(x) V in one pass over the keys; nothing of size Sq x Sk is held.
///
/// \param exec   execution-space instance; all work is queued on it
/// \param query  [B, Sq, Hq, D], or [Sq, Hq, D] for one sequence or packed ones; float, bfloat16_t or half_t, or float8_e4m3_t with the
///               options' scales, which cannot be rotated here
/// \param key    [B, Sk, Hkv, D] or [Sk, Hkv, D]; Hq is a multiple of Hkv, query head h uses key head h / (Hq/Hkv)
/// \param value  [B, Sk, Hkv, Dv] or [Sk, Hkv, Dv]
/// \param out    [B, Sq, Hq, Dv] or [Sq, Hq, Dv], the query's type or float, of float8_e4m3_t float, bfloat16_t or half_t, out; 0 in a row
///               without a legal key
/// \param lse    [B, Hq, Sq] or [Hq, Sq] float, out, or std::nullopt: natural log of the denominator without the sink; -infinity in a row
///               without a legal key
/// \param options    masks, biases, rotary embedding, dropout, packed sequences, scales, a state to go on from, level
/// \param workspace  rank-1 View of std::byte with at least attention_forward_workspace_size bytes.  With it nothing is allocated or
///               fenced; without it the operator allocates one and fences when freeing it
/// \throws std::invalid_argument on mismatched extents, options out of range, missing or superfluous scales, overlapping arrays,
///         unreachable memory, too small a workspace
template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Value, Impl::AnyView Out, Impl::OptionalView Lse,
          Impl::WorkspaceView Workspace>
void attention_forward(const Exec& exec, const Query& query, const Key& key, const Value& value, const Out& out, const Lse& lse,
                       const AttentionOptions& options, const Workspace& workspace) {
  Impl::attention_forward(exec, Impl::attention_forward_arguments<Exec>(query, key, value, out, lse, options),
                          Impl::workspace_span<Exec>(workspace));
}

template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Value, Impl::AnyView Out, Impl::OptionalView Lse>
void attention_forward(const Exec& exec, const Query& query, const Key& key, const Value& value, const Out& out, const Lse& lse,
                       const AttentionOptions& options = {}) {
  const auto arguments = Impl::attention_forward_arguments<Exec>(query, key, value, out, lse, options);
  const auto workspace = Impl::allocate_workspace(exec, Impl::attention_forward_workspace_size(exec, arguments));
  Impl::attention_forward(exec, arguments, Impl::workspace_span<Exec>(workspace));
}

/// On the default instance of the query's execution space.
template <Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Value, Impl::AnyView Out, Impl::OptionalView Lse>
void attention_forward(const Query& query, const Key& key, const Value& value, const Out& out, const Lse& lse,
                       const AttentionOptions& options = {}) {
  attention_forward(typename Query::execution_space{}, query, key, value, out, lse, options);
}

/// Bytes that attention_backward needs as its workspace for these arguments on this instance.
template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Value, Impl::AnyView Out, Impl::AnyView Lse,
          Impl::AnyView GradOut, Impl::AnyView GradQuery, Impl::AnyView GradKey, Impl::AnyView GradValue>
std::size_t attention_backward_workspace_size(const Exec& exec, const Query& query, const Key& key, const Value& value, const Out& out,
                                              const Lse& lse, const GradOut& grad_out, const GradQuery& grad_query, const GradKey& grad_key,
                                              const GradValue& grad_value, const AttentionOptions& options = {},
                                              const AttentionGradients& gradients = {}) {
  return Impl::attention_backward_workspace_size(
      exec, Impl::attention_backward_arguments<Exec>(query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options,
                                                     gradients));
}

/// Gradients of attention_forward, from its results out and lse.  Every sum has a fixed order, unless options.deterministic is false.
///
/// A stretch of the keys, with out and lse of all of them (and query_offset and key_offset where positions count), gives this stretch's
/// grad_key, grad_value and additive_mask gradient, and its share of grad_query and of the gradients of alibi_slopes and relative_bias,
/// which add up over disjoint stretches.  A stretch of the queries likewise gives its rows of grad_query and shares of the others.  The
/// gradient of sink does not depend on the keys: every stretch of keys gives the whole of it, to be taken once.  grad_query has the query's
/// type: shares of 2-byte types are rounded each.
///
/// \param exec        execution-space instance; all work is queued on it
/// \param query, key, value   as in attention_forward
/// \param out, lse    what attention_forward gave for the same inputs and options (lse [B, Hq, Sq] float)
/// \param grad_out    gradient of out, its extents and type
/// \param grad_query, grad_key, grad_value  out, the extents and type of query, key and value; may be parts of one array, [B, S, 3, H, D]
/// \param options     those of the forward call, without `previous`
/// \param gradients   the gradient of lse that comes in, and the further gradients that are wanted
/// \param workspace   rank-1 View of std::byte with at least attention_backward_workspace_size bytes, as in attention_forward
/// \throws std::invalid_argument as attention_forward does
template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Value, Impl::AnyView Out, Impl::AnyView Lse,
          Impl::AnyView GradOut, Impl::AnyView GradQuery, Impl::AnyView GradKey, Impl::AnyView GradValue, Impl::WorkspaceView Workspace>
void attention_backward(const Exec& exec, const Query& query, const Key& key, const Value& value, const Out& out, const Lse& lse,
                        const GradOut& grad_out, const GradQuery& grad_query, const GradKey& grad_key, const GradValue& grad_value,
                        const AttentionOptions& options, const AttentionGradients& gradients, const Workspace& workspace) {
  Impl::attention_backward(
      exec,
      Impl::attention_backward_arguments<Exec>(query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options, gradients),
      Impl::workspace_span<Exec>(workspace));
}

template <ExecutionSpace Exec, Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Value, Impl::AnyView Out, Impl::AnyView Lse,
          Impl::AnyView GradOut, Impl::AnyView GradQuery, Impl::AnyView GradKey, Impl::AnyView GradValue>
void attention_backward(const Exec& exec, const Query& query, const Key& key, const Value& value, const Out& out, const Lse& lse,
                        const GradOut& grad_out, const GradQuery& grad_query, const GradKey& grad_key, const GradValue& grad_value,
                        const AttentionOptions& options = {}, const AttentionGradients& gradients = {}) {
  const auto arguments =
      Impl::attention_backward_arguments<Exec>(query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options, gradients);
  const auto workspace = Impl::allocate_workspace(exec, Impl::attention_backward_workspace_size(exec, arguments));
  Impl::attention_backward(exec, arguments, Impl::workspace_span<Exec>(workspace));
}

/// On the default instance of the query's execution space.
template <Impl::AnyView Query, Impl::AnyView Key, Impl::AnyView Value, Impl::AnyView Out, Impl::AnyView Lse, Impl::AnyView GradOut,
          Impl::AnyView GradQuery, Impl::AnyView GradKey, Impl::AnyView GradValue>
void attention_backward(const Query& query, const Key& key, const Value& value, const Out& out, const Lse& lse, const GradOut& grad_out,
                        const GradQuery& grad_query, const GradKey& grad_key, const GradValue& grad_value,
                        const AttentionOptions& options = {}, const AttentionGradients& gradients = {}) {
  attention_backward(typename Query::execution_space{}, query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options,
                     gradients);
}

struct AttentionMergeOptions {
  ArrayOption<float, 1> sink  = {};  ///< [Hq]: applied to the merged result, O *= 1/(1 + exp(sink - LSE)); LSE stays without it
  Level                 level = Level::automatic;
};

/// Joins results over disjoint sets of keys, each computed without a sink, into the result over their union: outputs weighted by
/// exp(lse - max lse).  Associative and commutative up to rounding; lse = -infinity is the identity.  Needs no workspace.
///
/// \param exec    execution-space instance; all work is queued on it, nothing is allocated or fenced
/// \param states  1 to 8 partial results, all with the extents of out and lse
/// \param out     [B, Sq, Hq, Dv] or [Sq, Hq, Dv], float, bfloat16_t or half_t, out; may be the very array of one of the states
/// \param lse     [B, Hq, Sq] or [Hq, Sq] float, out, or std::nullopt; likewise
/// \throws std::invalid_argument on mismatched extents or overlapping arrays
template <ExecutionSpace Exec, Impl::AnyView Out, Impl::OptionalView Lse>
void attention_merge(const Exec& exec, std::span<const AttentionState> states, const Out& out, const Lse& lse,
                     const AttentionMergeOptions& options = {}) {
  constexpr std::string_view f = "attention_merge";
  Impl::check_views<Exec, Out, Lse>();
  using Number = typename Out::non_const_value_type;
  static_assert(Element<Number> && !std::same_as<Number, float8_e4m3_t>,
                "Tributary::attention_merge: out must be float, bfloat16_t or half_t");
  std::vector<Impl::AttentionMergeArguments::State> tensors;
  for (const AttentionState& state : states)
    tensors.push_back({state.out.template on<Exec>(f, "a state's out"), state.lse.template on<Exec>(f, "a state's lse")});
  Impl::attention_merge(exec,
                        {.states   = tensors,
                         .sink     = options.sink.template on<Exec>(f, "sink"),
                         .has_sink = options.sink.given(),
                         .out_type = element_type<Number>(),
                         .out      = Impl::as<void>(Impl::output_tensor<Number, 4>(f, "out", out)),
                         .lse      = Impl::output_tensor<float, 3>(f, "lse", lse),
                         .has_lse  = Impl::is_view<Lse>},
                        options.level);
}

/// On the default instance of out's execution space.
template <Impl::AnyView Out, Impl::OptionalView Lse>
void attention_merge(std::span<const AttentionState> states, const Out& out, const Lse& lse, const AttentionMergeOptions& options = {}) {
  attention_merge(typename Out::execution_space{}, states, out, lse, options);
}

}  // namespace Tributary
