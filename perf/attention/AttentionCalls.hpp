#pragma once
#include <Tributary_Attention.hpp>
#include <Tributary_Quantize.hpp>
#include <cstddef>
#include <cstdint>
#include <string>

#include "common/random.hpp"

namespace Tributary::Benchmark {

struct AttentionShape {
  std::int64_t length, heads, head_dim;
  bool         causal;
  std::int64_t key_heads       = heads;
  std::int64_t window          = length;  // keys that a causal query sees at most
  bool         values_are_keys = false;

  std::string name() const {
    std::string text = "S" + std::to_string(length) + "_H" + std::to_string(heads) + "_D" + std::to_string(head_dim);
    if (key_heads != heads) text += "_Hkv" + std::to_string(key_heads);
    text += causal ? "_causal" : "_full";
    if (window != length) text += "_W" + std::to_string(window);
    return text + (values_are_keys ? "_V=K" : "");
  }
  double legal_pairs() const {
    return static_cast<double>(causal ? window * (window + 1) / 2 + (length - window) * window : length * length);
  }
  std::int64_t key_head(std::int64_t head) const { return head / (heads / key_heads); }
  /// Forward 2 products a pair, backward 5.
  double flop(int products) const { return 2.0 * products * static_cast<double>(heads * head_dim) * legal_pairs(); }
};

/// Arguments of attention_forward, in the memory of Space.  A workspace may follow the execution space of a call.
template <class Element, class OutElement, class Space>
struct ForwardArguments {
  static constexpr int         products = 2;
  static constexpr ElementType type     = element_type<Element>();

  Array<Element***, Space>    query, key, value;
  Array<OutElement***, Space> out;
  Array<float**, Space>       lse;
  AttentionOptions            options;

  template <class Exec, class... Workspace>
  void run(const Exec& exec, const Workspace&... workspace) const {
    attention_forward(exec, query, key, value, out, lse, options, workspace...);
  }
  template <class Exec>
  std::size_t workspace_size(const Exec& exec) const {
    return attention_forward_workspace_size(exec, query, key, value, out, lse, options);
  }
  double bytes() const {
    return static_cast<double>(sizeof(Element) * (query.size() + key.size() + value.size()) + sizeof(OutElement) * out.size() +
                               sizeof(float) * lse.size());
  }
};

template <class Element, class Space = Kokkos::DefaultHostExecutionSpace>
struct ForwardCall : ForwardArguments<Element, Element, Space> {
  using Heads = Array<Element***, Space>;

  explicit ForwardCall(const AttentionShape& shape, Level level = Level::automatic) {
    this->query = random<Element***, Space>("query", 1, shape.length, shape.heads, shape.head_dim);
    this->key   = random<Element***, Space>("key", 2, shape.length, shape.key_heads, shape.head_dim);
    this->value = shape.values_are_keys ? this->key : random<Element***, Space>("value", 3, shape.length, shape.key_heads, shape.head_dim);
    this->out   = output<Element***, Space>("out", shape.length, shape.heads, shape.head_dim);
    this->lse   = output<float**, Space>("lse", shape.heads, shape.length);
    this->options =
        AttentionOptions{.causal = shape.causal, .window_left = shape.window < shape.length ? shape.window - 1 : -1, .level = level};
  }
};

/// The same in e4m3: the numbers of a call in bfloat16, quantised, and an output in bfloat16.
template <class Space>
struct E4m3ForwardCall : ForwardArguments<float8_e4m3_t, bfloat16_t, Space> {
  Array<float**, Space> query_scale, key_scale, value_scale;

  explicit E4m3ForwardCall(const AttentionShape& shape, Level level = Level::automatic) {
    const ForwardCall<bfloat16_t, Space> full(shape, level);
    const auto                           quantise = [&](const auto& from, auto& to, auto& scale) {
      to = output<float8_e4m3_t***, Space>("e4m3", from.extent(0), from.extent(1), from.extent(2));
      scale = output<float**, Space>("scale", from.extent(1), (from.extent(0) + attention_scale_rows - 1) / attention_scale_rows);
      quantize_e4m3_heads(Space{}, from, to, scale);
    };
    quantise(full.query, this->query, query_scale);
    quantise(full.key, this->key, key_scale);
    quantise(full.value, this->value, value_scale);
    this->out                 = full.out;
    this->lse                 = full.lse;
    this->options             = full.options;
    this->options.query_scale = query_scale;
    this->options.key_scale   = key_scale;
    this->options.value_scale = value_scale;
    Kokkos::fence("Tributary benchmark: quantised");
  }
};

/// Arguments of attention_backward; forward must have run.
template <class Element, class Space = Kokkos::DefaultHostExecutionSpace>
struct BackwardCall {
  static constexpr int         products = 5;
  static constexpr ElementType type     = element_type<Element>();

  ForwardCall<Element, Space>                 forward;
  typename ForwardCall<Element, Space>::Heads grad_out, grad_query, grad_key, grad_value;
  AttentionGradients                          gradients;  // further ones that are wanted

  explicit BackwardCall(const AttentionShape& shape, Level level = Level::automatic)
      : forward(shape, level),
        grad_out(random<Element***, Space>("grad_out", 4, shape.length, shape.heads, shape.head_dim)),
        grad_query(output<Element***, Space>("grad_query", shape.length, shape.heads, shape.head_dim)),
        grad_key(output<Element***, Space>("grad_key", shape.length, shape.key_heads, shape.head_dim)),
        grad_value(output<Element***, Space>("grad_value", shape.length, shape.key_heads, shape.head_dim)) {}

  template <class Exec>
  void run(const Exec& exec) const {
    const auto& [query, key, value, out, lse, options] = forward;
    attention_backward(exec, query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options, gradients);
  }
  template <class Exec, class Workspace>
  void run(const Exec& exec, const Workspace& workspace) const {
    const auto& [query, key, value, out, lse, options] = forward;
    attention_backward(exec, query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options, gradients, workspace);
  }
  template <class Exec>
  std::size_t workspace_size(const Exec& exec) const {
    const auto& [query, key, value, out, lse, options] = forward;
    return attention_backward_workspace_size(exec, query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value, options,
                                             gradients);
  }
  double bytes() const { return forward.bytes() + static_cast<double>(4 * sizeof(Element) * grad_out.size()); }
};

/// An option that a call has besides.
enum class Extra { none, softcap, sink, slopes, table, slopes_and_table, key_keep, keep, mask_of_keys, mask_of_pairs, dropout };

inline std::string name_of(Extra extra) {
  switch (extra) {
    case Extra::none: return "";
    case Extra::softcap: return "softcap";
    case Extra::sink: return "sink";
    case Extra::slopes: return "slopes";
    case Extra::table: return "table";
    case Extra::slopes_and_table: return "slopes_and_table";
    case Extra::key_keep: return "key_keep";
    case Extra::keep: return "keep";
    case Extra::mask_of_keys: return "mask_of_keys";
    case Extra::mask_of_pairs: return "mask_of_pairs";
    default: return "dropout";
  }
}

/// What it takes so that results are those of the call without: biases of zero, masks that hide nothing, a soft cap, a sink and a dropout
/// that are not noticed.
template <class Space>
struct ExtraArrays {
  Array<float****, Space>        mask, grad_mask;
  Array<float**, Space>          slopes, table, grad_slopes, grad_table;
  Array<float*, Space>           sink;
  Array<std::uint8_t**, Space>   key_keep;
  Array<std::uint8_t****, Space> keep;

  void add(const AttentionShape& shape, Extra extra, AttentionOptions& options) {
    if (extra == Extra::softcap) options.softcap = 1000;
    if (extra == Extra::dropout) options.dropout.probability = 1e-8f;
    if (extra == Extra::sink) {
      sink = Array<float*, Space>("sink", shape.heads);
      Kokkos::deep_copy(sink, -1e30f);
      options.sink = sink;
    }
    if (extra == Extra::slopes || extra == Extra::slopes_and_table) {
      slopes               = Array<float**, Space>("slopes", 1, shape.heads);
      options.alibi_slopes = slopes;
    }
    if (extra == Extra::table || extra == Extra::slopes_and_table) {
      table                       = Array<float**, Space>("table", 32, shape.heads);
      options.relative_bias.table = table;
    }
    if (extra == Extra::key_keep) {
      key_keep = Array<std::uint8_t**, Space>("key_keep", 1, shape.length);
      Kokkos::deep_copy(key_keep, std::uint8_t{1});
      options.key_keep = key_keep;
    }
    if (extra == Extra::keep) {
      keep = Array<std::uint8_t****, Space>("keep", 1, 1, shape.length, shape.length);
      Kokkos::deep_copy(keep, std::uint8_t{1});
      options.keep = keep;
    }
    if (extra == Extra::mask_of_keys || extra == Extra::mask_of_pairs) {
      mask                  = Array<float****, Space>("mask", 1, 1, extra == Extra::mask_of_keys ? 1 : shape.length, shape.length);
      options.additive_mask = mask;
    }
  }

  /// The gradients of biases.
  void add_gradients(AttentionGradients& gradients) {
    if (mask.size() > 0) {
      grad_mask               = Array<float****, Space>("grad_mask", 1, 1, mask.extent(2), mask.extent(3));
      gradients.additive_mask = grad_mask;
    }
    if (slopes.size() > 0) {
      grad_slopes            = Array<float**, Space>("grad_slopes", 1, slopes.extent(1));
      gradients.alibi_slopes = grad_slopes;
    }
    if (table.size() > 0) {
      grad_table              = Array<float**, Space>("grad_table", table.extent(0), table.extent(1));
      gradients.relative_bias = grad_table;
    }
  }
};

#ifdef KOKKOS_ENABLE_CUDA
void add_attention_device_benchmarks(const Kokkos::Cuda& exec, const std::string& space);
#endif

}  // namespace Tributary::Benchmark
