#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/attention.hpp"
#include "topk/topk_reference.hpp"

namespace Tributary::Impl {

namespace {

using Numbers = std::vector<double>;

constexpr double infinity = std::numeric_limits<double>::infinity();

double rounded(ElementType type, double value) {
  return visit_element_type(
      type, [&]<class T>(std::type_identity<T>) { return static_cast<double>(static_cast<float>(T(static_cast<float>(value)))); });
}

void store(ElementType type, void* data, std::int64_t offset, double value) {
  visit_element_type(type, [&]<class T>(std::type_identity<T>) { static_cast<T*>(data)[offset] = T(static_cast<float>(value)); });
}

/// `count` numbers from an offset on.
Numbers read(ElementType type, const void* data, std::int64_t offset, std::int64_t count) {
  Numbers numbers;
  for (std::int64_t n = 0; n < count; ++n) numbers.push_back(static_cast<double>(element(type, data, offset + n)));
  return numbers;
}

double dot(const Numbers& a, const Numbers& b) {
  double sum = 0;
  for (std::size_t n = 0; n < a.size(); ++n) sum += a[n] * b[n];
  return sum;
}

/// sum += weight * a
void add(Numbers& sum, double weight, const Numbers& a) {
  for (std::size_t n = 0; n < a.size(); ++n) sum[n] += weight * a[n];
}

/// Turns the pairs of one head by the angles of a position, or back.
void turn(const RotaryProblem& rotary, std::int64_t position, bool back, Numbers& row) {
  for (std::int64_t r = 0; r < rotary.dims / 2; ++r) {
    const double       angle = static_cast<double>(position) * std::pow(rotary.base, -2.0 * static_cast<double>(r) / rotary.dims);
    const std::int64_t place = clip(position, 0, rotary.positions - 1);
    const double cosine = rotary.cosine == nullptr ? std::cos(angle) : static_cast<double>(rotary.cosine[place * rotary.cosine_stride + r]);
    const double sine   = rotary.sine == nullptr ? std::sin(angle) : static_cast<double>(rotary.sine[place * rotary.sine_stride + r]);
    double&      first  = row[static_cast<std::size_t>(rotary.first + (rotary.interleaved ? 2 * r : r))];
    double&      second = row[static_cast<std::size_t>(rotary.first + (rotary.interleaved ? 2 * r + 1 : r + rotary.dims / 2))];
    const double up = back ? -sine : sine, a = first, b = second;
    first  = a * cosine - b * up;
    second = b * cosine + a * up;
  }
}

/// One head of one sequence: the formula of a score and the weight of dropout.  i counts the segment's query rows, j the sequence's keys.
class HeadOfSequence {
 public:
  HeadOfSequence(const AttentionProblem& problem, const RotaryProblem& rotary, const Segment& segment, std::int32_t head)
      : p_(problem), rotary_(rotary), segment_(segment), head_(head) {
    for (std::int64_t j = 0; j < segment.keys; ++j) {
      const std::int64_t row = segment.first_key + j, key_head = p_.key_head(head);
      keys.push_back(read_row(p_.key, p_.key_strides, p_.key_scale, row, key_head, p_.head_dim));
      values.push_back(read_row(p_.value, p_.value_strides, p_.value_scale, row, key_head, p_.value_dim));
      rotate(key_position(j), keys.back());
    }
    if (p_.relative_bias != nullptr)
      first_distances_ = bucket_first_distances(p_.bidirectional ? p_.buckets / 2 : p_.buckets, p_.max_distance);
  }

  std::vector<Numbers> keys, values;  // keys rotated

  Numbers query(std::int64_t i) const {
    Numbers q = read_row(p_.query, p_.query_strides, p_.query_scale, segment_.row + i, head_, p_.head_dim);
    rotate(query_position(i), q);
    return q;
  }
  /// Numbers in the whole sequences, of which a segment may hold a stretch.
  std::int64_t number(std::int64_t i) const { return p_.query_offset + segment_.first_query + i; }
  std::int64_t key_number(std::int64_t j) const { return p_.key_offset + j; }
  /// i', the query's place among the keys.
  std::int64_t place(std::int64_t i) const { return number(i) + (p_.aligned_at_end ? segment_.keys - segment_.queries : 0); }

  std::int64_t query_position(std::int64_t i) const {
    if (rotary_.query_positions == nullptr) return place(i);
    return rotary_.query_positions[segment_.batch * rotary_.query_position_stride + segment_.row + i];
  }
  std::int64_t key_position(std::int64_t j) const {
    if (rotary_.key_positions == nullptr) return key_number(j);
    return rotary_.key_positions[segment_.batch * rotary_.key_position_stride + segment_.first_key + j];
  }

  struct Score {
    double value;  // x; -infinity: the pair does not take part
    double slope;  // its derivative by q . k
  };

  Score score(std::int64_t i, std::int64_t j, const Numbers& q) const {
    if (!takes_part(i, j)) return {-infinity, 0};
    const double scale = static_cast<double>(p_.scale), cap = static_cast<double>(p_.softcap);
    const double product = dot(q, keys[static_cast<std::size_t>(j)]);
    const double capped  = cap > 0 ? std::tanh(scale * product / cap) : 0;
    const double x       = (cap > 0 ? cap * capped : scale * product) + bias(i, j);
    // An infinite bias is the largest one: infinity - infinity would not be a number.
    return {std::min(x, static_cast<double>(std::numeric_limits<float>::max())), scale * (1 - capped * capped)};
  }

  /// 0 for a dropped pair, else 1/(1 - probability).
  double kept(std::int64_t i, std::int64_t j) const {
    if (!p_.has_dropout) return 1;
    const std::int64_t key   = key_number(j);
    const PhiloxBlock  words = philox(p_.dropout_seed, static_cast<std::uint32_t>(key / 4), static_cast<std::uint32_t>(number(i)),
                                      static_cast<std::uint32_t>(segment_.sequence * p_.heads + head_), p_.dropout_offset);
    return words.word[key % 4] >= p_.dropout_threshold ? static_cast<double>(p_.dropout_scale) : 0;
  }

  /// -|i' - j|, by which a slope is multiplied.
  double alibi_distance(std::int64_t i, std::int64_t j) const { return -static_cast<double>(std::abs(place(i) - key_number(j))); }

  /// T5's bucket of j - i'.
  std::int64_t bucket(std::int64_t i, std::int64_t j) const {
    const std::int64_t relative = key_number(j) - place(i);
    const std::int64_t distance = p_.bidirectional ? std::abs(relative) : std::max<std::int64_t>(-relative, 0);
    const auto         above    = std::upper_bound(first_distances_.begin(), first_distances_.end(), distance);
    return (above - first_distances_.begin()) - 1 + (p_.bidirectional && relative > 0 ? p_.buckets / 2 : 0);
  }

 private:
  const AttentionProblem&   p_;
  const RotaryProblem&      rotary_;
  const Segment             segment_;
  const std::int32_t        head_;
  std::vector<std::int32_t> first_distances_;

  /// A row of a tensor, times its scale.
  Numbers read_row(const void* data, const std::int64_t (&strides)[3], const BlockScales& scales, std::int64_t row, std::int64_t head,
                   std::int64_t count) const {
    Numbers numbers = read(p_.type, data, segment_.batch * strides[0] + row * strides[1] + head * strides[2], count);
    if (scales.data != nullptr)
      for (double& number : numbers) number *= static_cast<double>(scales.of(segment_.batch, row, head));
    return numbers;
  }

  void rotate(std::int64_t position, Numbers& row) const {
    if (rotary_.dims == 0) return;
    turn(rotary_, position, false, row);
    for (double& number : row) number = rounded(p_.type, number);
  }

  bool takes_part(std::int64_t i, std::int64_t j) const {
    const KeyInterval  window = p_.window(place(i) - p_.key_offset, segment_.keys);
    const std::int64_t batch = segment_.batch, row = segment_.row + i;
    if (j < window.begin || j >= window.end) return false;
    if (p_.key_keep != nullptr && p_.key_keep[batch * p_.key_keep_stride + segment_.first_key + j] == 0) return false;
    if (p_.keep != nullptr &&
        (j >= p_.keep_columns || p_.keep[batch * p_.keep_strides[0] + head_ * p_.keep_strides[1] + row * p_.keep_strides[2] + j] == 0))
      return false;
    return additive(i, j) != -infinity;
  }

  double additive(std::int64_t i, std::int64_t j) const {
    if (p_.additive_mask == nullptr || j >= p_.additive_mask_columns) return 0;
    const std::int64_t* strides = p_.additive_mask_strides;
    return static_cast<double>(p_.additive_mask[segment_.batch * strides[0] + head_ * strides[1] + (segment_.row + i) * strides[2] + j]);
  }

  double bias(std::int64_t i, std::int64_t j) const {
    double sum = additive(i, j);
    if (p_.alibi_slopes != nullptr)
      sum += static_cast<double>(p_.alibi_slopes[segment_.sequence * p_.alibi_stride + head_]) * alibi_distance(i, j);
    if (p_.relative_bias != nullptr) sum += static_cast<double>(p_.relative_bias[bucket(i, j) * p_.relative_bias_stride + head_]);
    return sum;
  }
};

/// Calls function(segment, head, the head) for every head of every run of query rows that see the same keys.
template <class Function>
void for_each_head(const AttentionProblem& p, const RotaryProblem& rotary, const Function& function) {
  for (std::int64_t batch = 0; batch < p.batch; ++batch)
    for (std::int64_t row = 0; row < p.queries;) {
      const Segment segment = p.packed.segment(batch, row, p.queries, p.queries, p.keys);
      for (std::int32_t head = 0; head < p.heads; ++head) function(segment, head, HeadOfSequence(p, rotary, segment, head));
      row += segment.rows;
    }
}

/// The result over some keys: the output without a sink, and the log of its denominator.
struct State {
  Numbers out;
  double  lse = -infinity;
};

/// States over disjoint sets of keys as one: outputs weighted by exp(lse - max lse).
State merged(const std::vector<State>& states) {
  State  result{Numbers(states.front().out.size(), 0.0)};
  double most = -infinity, denominator = 0;
  for (const State& state : states) most = std::max(most, state.lse);
  for (const State& state : states) {
    if (state.lse == -infinity) continue;
    const double weight = std::exp(state.lse - most);
    denominator += weight;
    add(result.out, weight, state.out);
  }
  if (denominator == 0) return result;
  for (double& out : result.out) out /= denominator;
  result.lse = most + std::log(denominator);
  return result;
}

/// The sink's share of the denominator taken off the output.
void apply_sink(State& state, double sink) {
  if (state.lse == -infinity) return;
  for (double& out : state.out) out *= 1 / (1 + std::exp(sink - state.lse));
}

/// softmax(x) V of one query.
State attend(const AttentionProblem& p, const HeadOfSequence& head, std::int64_t i) {
  State         state{Numbers(static_cast<std::size_t>(p.value_dim), 0.0)};
  const Numbers q    = head.query(i);
  const auto    keys = static_cast<std::int64_t>(head.keys.size());
  Numbers       x;
  for (std::int64_t j = 0; j < keys; ++j) x.push_back(head.score(i, j, q).value);
  double most = -infinity, denominator = 0;
  for (const double score : x) most = std::max(most, score);
  bool empty = true;
  for (std::int64_t j = 0; j < keys; ++j) {
    const double score = x[static_cast<std::size_t>(j)];
    if (score == -infinity) continue;
    empty               = false;
    const double weight = std::exp(score - most);
    denominator += weight;  // of every pair: dropout does not renormalise
    add(state.out, weight * head.kept(i, j), head.values[static_cast<std::size_t>(j)]);
  }
  if (empty) return state;
  for (double& out : state.out) out /= denominator;
  state.lse = most + std::log(denominator);
  return state;
}

template <class T>
std::int64_t offset(const Tensor<T, 4>& tensor, std::int64_t batch, std::int64_t row, std::int64_t head) {
  return batch * tensor.strides[0] + row * tensor.strides[1] + head * tensor.strides[2];
}
template <class T>
std::int64_t offset(const Tensor<T, 3>& tensor, std::int64_t batch, std::int64_t head, std::int64_t row) {
  return batch * tensor.strides[0] + head * tensor.strides[1] + row;
}

State read_state(const Tensor<const float, 4>& out, const Tensor<const float, 3>& lse, std::int64_t batch, std::int64_t row,
                 std::int64_t head) {
  return {read(ElementType::float32, out.data, offset(out, batch, row, head), out.extents[3]),
          static_cast<double>(lse.data[offset(lse, batch, head, row)])};
}

void write_state(const State& state, ElementType out_type, const Tensor<void, 4>& out, const Tensor<float, 3>& lse, std::int64_t batch,
                 std::int64_t row, std::int64_t head) {
  for (std::int64_t d = 0; d < out.extents[3]; ++d)
    store(out_type, out.data, offset(out, batch, row, head) + d, state.out[static_cast<std::size_t>(d)]);
  if (lse) lse.data[offset(lse, batch, head, row)] = static_cast<float>(state.lse);
}

}  // namespace

void reference_attention_forward(const AttentionProblem& p, const RotaryProblem& rotary, const AttentionForwardArguments& a) {
  for_each_head(p, rotary, [&](const Segment& segment, std::int32_t head, const HeadOfSequence& sequence) {
    for (std::int64_t i = 0; i < segment.rows; ++i) {
      const std::int64_t row   = segment.row + i;
      State              state = attend(p, sequence, i);
      if (a.previous_out) state = merged({state, read_state(a.previous_out, a.previous_lse, segment.batch, row, head)});
      if (p.sink != nullptr) apply_sink(state, static_cast<double>(p.sink[head]));
      write_state(state, a.out_type, a.out, a.lse, segment.batch, row, head);
    }
  });
}

void reference_attention_merge(const AttentionMergeArguments& a) {
  const auto [batches, rows, heads, value_dim] = a.out.extents;
  for (std::int64_t batch = 0; batch < batches; ++batch)
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t head = 0; head < heads; ++head) {
        std::vector<State> states;
        for (const auto& state : a.states) states.push_back(read_state(state.out, state.lse, batch, row, head));
        State result = merged(states);
        if (a.has_sink) apply_sink(result, static_cast<double>(a.sink.data[head]));
        write_state(result, a.out_type, a.out, a.lse, batch, row, head);
      }
}

namespace {

/// A gradient summed in double, then written in its type.
template <int Rank>
class Sum {
 public:
  Sum(const std::int64_t (&extents)[Rank]) {
    std::int64_t size = 1;
    for (int d = Rank; d-- > 0; size *= extents[d]) {
      extents_[d] = extents[d];
      strides_[d] = size;
    }
    numbers_.assign(static_cast<std::size_t>(size), 0.0);
  }
  /// Where an extent is 1 every index is its one element: a broadcast input's gradient is the sum.
  double& at(const std::int64_t (&place)[Rank]) {
    std::int64_t offset = 0;
    for (int d = 0; d < Rank; ++d) offset += extents_[d] == 1 ? 0 : place[d] * strides_[d];
    return numbers_[static_cast<std::size_t>(offset)];
  }
  template <class T>
  void write(ElementType type, const Tensor<T, Rank>& output) const {
    for (std::size_t n = 0; n < numbers_.size(); ++n) {
      std::int64_t offset = 0;
      for (int d = 0; d < Rank; ++d) offset += static_cast<std::int64_t>(n) / strides_[d] % extents_[d] * output.strides[d];
      store(type, output.data, offset, numbers_[n]);
    }
  }

 private:
  std::int64_t extents_[Rank], strides_[Rank];
  Numbers      numbers_;
};

struct Gradients {
  Sum<4> query, key, value, additive_mask;
  Sum<2> alibi_slopes, relative_bias;
  Sum<1> sink;
};

/// The gradients that one head of one sequence adds.
void add_gradients(const AttentionProblem& p, const RotaryProblem& rotary, const AttentionBackwardArguments& a, const Segment& segment,
                   std::int32_t head, const HeadOfSequence& sequence, Gradients& gradients) {
  const std::int64_t   batch = segment.batch, key_head = p.key_head(head);
  const auto           zeros = [](std::int64_t count) { return Numbers(static_cast<std::size_t>(count), 0.0); };
  std::vector<Numbers> key_gradient(sequence.keys.size(), zeros(p.head_dim)), value_gradient(sequence.keys.size(), zeros(p.value_dim));

  for (std::int64_t i = 0; i < segment.rows; ++i) {
    const std::int64_t row = segment.row + i;
    const double       lse = static_cast<double>(a.lse.data[offset(a.lse, batch, head, row)]);
    if (lse == -infinity) continue;  // no legal key
    const double  sink     = p.sink == nullptr ? -infinity : static_cast<double>(p.sink[head]);
    const double  most     = std::max(lse, sink);
    const double  lse_full = most + std::log(std::exp(lse - most) + std::exp(sink - most));
    const double  grad_lse = a.grad_lse ? static_cast<double>(a.grad_lse.data[offset(a.grad_lse, batch, head, row)]) : 0;
    const Numbers q        = sequence.query(i);
    const Numbers out      = read(a.out_type, a.out.data, offset(a.out, batch, row, head), p.value_dim);
    const Numbers grad_out = read(a.out_type, a.grad_out.data, offset(a.grad_out, batch, row, head), p.value_dim);
    const double  delta    = dot(grad_out, out);
    Numbers       grad_q   = zeros(p.head_dim);

    for (std::int64_t j = 0; j < segment.keys; ++j) {
      const auto key   = static_cast<std::size_t>(j);
      const auto score = sequence.score(i, j, q);
      if (score.value == -infinity) continue;
      const double weight = std::exp(score.value - lse_full), without_sink = std::exp(score.value - lse), kept = sequence.kept(i, j);
      const double grad_weight  = kept * dot(grad_out, sequence.values[key]);
      const double grad_score   = weight * (grad_weight - delta) + without_sink * grad_lse;
      const double grad_product = grad_score * score.slope;
      add(grad_q, grad_product, sequence.keys[key]);
      add(key_gradient[key], grad_product, q);
      add(value_gradient[key], weight * kept, grad_out);
      if (a.grad_additive_mask && j < p.additive_mask_columns) gradients.additive_mask.at({batch, head, row, j}) += grad_score;
      if (a.grad_alibi_slopes) gradients.alibi_slopes.at({segment.sequence, head}) += grad_score * sequence.alibi_distance(i, j);
      if (a.grad_relative_bias) gradients.relative_bias.at({sequence.bucket(i, j), head}) += grad_score;
    }
    if (a.grad_sink) gradients.sink.at({head}) -= std::exp(sink - lse_full) * delta;
    turn(rotary, sequence.query_position(i), true, grad_q);
    for (std::int64_t d = 0; d < p.head_dim; ++d) gradients.query.at({batch, row, head, d}) = grad_q[static_cast<std::size_t>(d)];
  }

  for (std::int64_t j = 0; j < segment.keys; ++j) {
    const auto         key = static_cast<std::size_t>(j);
    const std::int64_t row = segment.first_key + j;
    turn(rotary, sequence.key_position(j), true, key_gradient[key]);
    for (std::int64_t d = 0; d < p.head_dim; ++d)
      gradients.key.at({batch, row, key_head, d}) += key_gradient[key][static_cast<std::size_t>(d)];
    for (std::int64_t d = 0; d < p.value_dim; ++d)
      gradients.value.at({batch, row, key_head, d}) += value_gradient[key][static_cast<std::size_t>(d)];
  }
}

}  // namespace

void reference_attention_backward(const AttentionProblem& p, const RotaryProblem& rotary, const AttentionBackwardArguments& a) {
  Gradients gradients{.query         = a.grad_query.extents,
                      .key           = a.grad_key.extents,
                      .value         = a.grad_value.extents,
                      .additive_mask = a.grad_additive_mask.extents,
                      .alibi_slopes  = a.grad_alibi_slopes.extents,
                      .relative_bias = a.grad_relative_bias.extents,
                      .sink          = a.grad_sink.extents};
  for_each_head(p, rotary, [&](const Segment& segment, std::int32_t head, const HeadOfSequence& sequence) {
    add_gradients(p, rotary, a, segment, head, sequence, gradients);
  });
  gradients.query.write(p.type, a.grad_query);
  gradients.key.write(p.type, a.grad_key);
  gradients.value.write(p.type, a.grad_value);
  gradients.additive_mask.write(ElementType::float32, a.grad_additive_mask);
  gradients.alibi_slopes.write(ElementType::float32, a.grad_alibi_slopes);
  gradients.relative_bias.write(ElementType::float32, a.grad_relative_bias);
  gradients.sink.write(ElementType::float32, a.grad_sink);
}

}  // namespace Tributary::Impl
